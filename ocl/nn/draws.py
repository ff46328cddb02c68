"""Random numbers from one generator, or from one per image so that an image's draws do not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ocl.errors import ShapeError
from ocl.types import Randomness


def normal(shape: Sequence[int], randomness: Randomness, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers [B, ...] on `device`, drawn where the generator lives."""
    return _draw(torch.randn, shape, randomness, device).to(dtype)


def uniform(shape: Sequence[int], randomness: Randomness, *, device: torch.device) -> Tensor:
    """Numbers in [0, 1), float32 [B, ...]."""
    return _draw(torch.rand, shape, randomness, device)


def integers(high: int, batch_size: int, randomness: Randomness, *, device: torch.device) -> Tensor:
    """One number in 0 ... high - 1 per image, int64 [B]."""
    return _draw(lambda shape, **options: torch.randint(high, tuple(shape), **options), [batch_size], randomness, device)


def _draw(draw: Callable[..., Tensor], shape: Sequence[int], randomness: Randomness, device: torch.device) -> Tensor:
    if randomness is None:
        return draw(tuple(shape), device=device)
    if isinstance(randomness, torch.Generator):
        return draw(tuple(shape), generator=randomness, device=randomness.device).to(device)
    if len(randomness) != shape[0]:
        raise ShapeError(f"draws for {shape[0]} images need one generator, or one for each, got {len(randomness)}.")
    if not randomness:
        return draw(tuple(shape), device=device)
    return torch.stack([draw(tuple(shape[1:]), generator=each, device=each.device) for each in randomness]).to(device)
