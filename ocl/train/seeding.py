"""Random draws belong to the step: every generator is a function of (seed, step), so a resumed run needs no random state.

The mixing function is SplitMix64's finalizer (Steele, Lea & Flood 2014): neighbouring seeds and steps give unrelated streams.
"""

from __future__ import annotations

import random

import numpy
import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def mix(seed: int, step: int, stream: int = 0) -> int:
    """64-bit value for (seed, step, stream): m(m(m(seed) + step) + stream), where m adds the golden gamma and finalizes."""
    value = 0
    for part in (seed, step, stream):
        value = _finalize((value + part + _GOLDEN) & _MASK)
    return value


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator that a model draws from in this step (slot noise, diffusion noise, timesteps): stream 0."""
    return torch.Generator(device).manual_seed(mix(seed, step, 0))


def seed_globals(seed: int, step: int) -> None:
    """Seed what user modules may draw from without being handed a generator (dropout, numpy, random): stream 1."""
    value = mix(seed, step, 1)
    torch.manual_seed(value)
    numpy.random.seed(value % 2**32)
    random.seed(value)


def _finalize(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
