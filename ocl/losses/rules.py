"""What losses demand of their arguments and of the model; every message names the loss and the way out."""

from __future__ import annotations

import math

from torch import Tensor

from ocl.errors import ConfigError
from ocl.interfaces import Loss
from ocl.types import Step


def positive_weight(loss: Loss, weight: float) -> float:
    """The weight. Raises ConfigError unless it is positive and finite."""
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"{_name(loss)}.weight must be positive and finite, got {weight}; leave the loss out to disable it.")
    return weight


def first_update(loss: Loss, name: str, index: int) -> int:
    """The number of the update at which a term sets in. Raises ConfigError below 0."""
    if index < 0:
        raise ConfigError(f"{_name(loss)}.{name} must be 0 or more, got {index}.")
    return index


def drawn_masks(loss: Loss, step: Step) -> Tensor:
    """The decoder's masks [B, K, h, w]. Raises ConfigError where it draws none."""
    masks = step.output.decoding.masks
    if masks is None:
        raise ConfigError(f"{_name(loss)} needs a decoder that draws masks, this one draws none; leave the loss out.")
    return masks


def _name(loss: Loss) -> str:
    return type(loss).__name__
