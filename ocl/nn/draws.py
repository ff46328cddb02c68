"""Random numbers from one generator, or from one per image so that an image's draws do not depend on its batch."""

from __future__ import annotations

import hashlib
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


def named_generator(name: str, *, seed: int) -> torch.Generator:
    """A generator that follows from a name and a seed alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def generators(names: Sequence[str], *, seed: int, purpose: str) -> list[torch.Generator]:
    """One generator for each named image; equal names, seeds and purposes give equal draws."""
    return [named_generator(f"{name} {purpose}", seed=seed) for name in names]


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
