"""The decoder's own error, averaged over the batch: what every slot autoencoder since MONet minimises."""

from __future__ import annotations

from typing import final

from torch import Tensor

from ocl.interfaces import Loss
from ocl.losses.rules import positive_weight
from ocl.types import Step


@final
class Reconstruction(Loss):
    """Mean over the batch of `step.output.decoding.error()`, times `weight`; a float32 scalar, nothing is detached.

    What is reconstructed (pixels, features or noise) is the decoder's choice.

    Args:
        weight: factor of this term in the sum of losses; positive and finite.
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = positive_weight(self, weight)

    def forward(self, step: Step) -> Tensor:
        return self.weight * step.output.decoding.error().mean()
