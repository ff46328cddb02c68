"""Random draws belong to the sample: its generator follows from the seed and its number, so no random state needs saving.

The mixing function is SplitMix64's finalizer (Steele, Lea & Flood 2014): neighbouring seeds and steps give unrelated streams.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

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


def sample_generators(seed: int, numbers: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """What a model draws from for each sample (slot noise, diffusion noise, timesteps): stream 0 of (seed, its number).

    numbers: place of each sample in the endless stream of the run, so that every sample of every step has its own. What is
    drawn for it does not depend on which process, or which part of a batch, it is in.
    """
    return [torch.Generator(device).manual_seed(mix(seed, number, 0)) for number in numbers]


def seed_globals(seed: int, step: int, rank: int = 0) -> None:
    """Seed what modules may draw from without being handed a generator (dropout, numpy, random): stream 1 + rank of the step."""
    value = mix(seed, step, 1 + rank)
    torch.manual_seed(value)
    numpy.random.seed(value % 2**32)
    random.seed(value)


def _finalize(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
