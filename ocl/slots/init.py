"""Where slots start. Gaussian: Locatello et al. 2020, algorithm 1; learned: Jia et al. 2023 (BO-QSA), section 3.2."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ocl.errors import ShapeError
from ocl.interfaces import SlotInit
from ocl.nn.draws import normal
from ocl.types import Randomness


@final
class GaussianInit(SlotInit):
    """Every slot is drawn from one shared, learned Gaussian, so that slots are exchangeable.

    Args:
        num_slots: how many slots K.
        slot_dim: width of a slot.
    """

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.num_slots, self.slot_dim = num_slots, slot_dim
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, slot_dim)))
        self.log_std = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, slot_dim)))

    def forward(self, batch_size: int, *, generator: Randomness = None, noise: Tensor | None = None) -> Tensor:
        noise = _noise(self, batch_size, generator, noise, like=self.mean)
        return self.mean + self.log_std.exp() * noise


@final
class LearnedInit(SlotInit):
    """Every slot starts at its own learned vector; no randomness. Use it with gradient="bilevel" (BO-QSA).

    Args:
        num_slots: how many slots K.
        slot_dim: width of a slot.
    """

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.num_slots, self.slot_dim = num_slots, slot_dim
        self.table = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, num_slots, slot_dim)))

    def forward(self, batch_size: int, *, generator: Randomness = None, noise: Tensor | None = None) -> Tensor:
        return self.table.expand(batch_size, -1, -1)


@final
class LearnedGaussianInit(SlotInit):
    """Every slot is drawn from its own learned Gaussian.

    Args:
        num_slots: how many slots K.
        slot_dim: width of a slot.
    """

    def __init__(self, num_slots: int, slot_dim: int) -> None:
        super().__init__()
        self.num_slots, self.slot_dim = num_slots, slot_dim
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, num_slots, slot_dim)))
        self.log_std = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, num_slots, slot_dim)))

    def forward(self, batch_size: int, *, generator: Randomness = None, noise: Tensor | None = None) -> Tensor:
        noise = _noise(self, batch_size, generator, noise, like=self.mean)
        return self.mean + self.log_std.exp() * noise


def _noise(
    init: SlotInit, batch_size: int, generator: Randomness, noise: Tensor | None, *, like: Tensor
) -> Tensor:
    shape = (batch_size, init.num_slots, init.slot_dim)
    if noise is None:
        return normal(shape, generator, device=like.device, dtype=like.dtype)
    if tuple(noise.shape) != shape:
        raise ShapeError(f"{type(init).__name__} expects noise of shape [B, K, D] = {list(shape)}, got {list(noise.shape)}.")
    return noise.to(like)
