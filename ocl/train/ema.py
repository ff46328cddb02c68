"""An exponential moving average of the trained weights (Polyak & Juditsky 1992); evaluation uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from ocl.nn.freezing import load_trainable_state_dict, trainable_state_dict


@final
class MovingAverage:
    """average <- decay * average + (1 - decay) * weight after every update, starting from the weights it is made with.

    Holds what a checkpoint holds: trained parameters are averaged (in their own dtype), buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._averaged = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.average = _copy(trainable_state_dict(model))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, weight in trainable_state_dict(model).items():
            if name in self._averaged:
                self.average[name].lerp_(weight.detach(), 1 - self.decay)
            else:
                self.average[name].copy_(weight)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model holds the average; afterwards it holds the very bits it held before."""
        trained = _copy(trainable_state_dict(model))
        load_trainable_state_dict(model, self.average)
        try:
            yield
        finally:
            load_trainable_state_dict(model, trained)


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
