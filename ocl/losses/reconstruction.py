"""The decoder's own error, averaged over the batch: what every slot autoencoder since MONet minimises."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor

from ocl.errors import ConfigError
from ocl.interfaces import Loss
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
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"Reconstruction.weight must be positive and finite, got {weight}; or leave the loss out.")
        self.weight = weight

    def forward(self, step: Step) -> Tensor:
        return self.weight * step.output.decoding.error().mean()
