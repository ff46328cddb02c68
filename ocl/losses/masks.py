"""Terms on the decoder's masks. Entropy minimisation as a prior for decided labels: Grandvalet & Bengio 2004, section 2."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor

from ocl.interfaces import Loss
from ocl.losses.rules import drawn_masks, positive_weight
from ocl.types import Step


@final
class MaskEntropy(Loss):
    """Mean over pixels of the entropy of the decoder's masks, as a share of log K, times `weight`; a float32 scalar in [0, weight].

    A mixture may draw one object with two slots at half opacity each, at no cost. This term makes that cost something, so
    that one of them takes the object.

    Args:
        weight: factor of this term in the sum of losses; positive and finite. 0.01 beside a pixel error near 0.004.
    """

    def __init__(self, *, weight: float = 0.01) -> None:
        super().__init__()
        self.weight = positive_weight(self, weight)

    def forward(self, step: Step) -> Tensor:
        masks = drawn_masks(self, step).float()
        entropy = -(masks * masks.clamp_min(1e-8).log()).sum(dim=1).mean()
        return self.weight * entropy / math.log(max(masks.shape[1], 2))
