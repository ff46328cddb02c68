"""Which sample comes when: a pure function of the seed, so that the position in the data is one number."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from ocl.errors import ConfigError, DataError

ENDLESS = 2**31  # a dataset at least this long is never walked to its end


@final
@dataclass(frozen=True)
class Order:
    """Maps the number of a sample in the stream (0, 1, ... without end) to its index in a dataset of `length` samples.

    Every `length` numbers are one epoch, and an epoch holds each index once, in an order drawn from (seed, epoch). Without
    `shuffle`, and for endless datasets (length >= 2**31), whose samples are drawn anyway, the order is 0, 1, ...
    A shuffled epoch costs 8 bytes per sample while it is the current one.
    """

    length: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DataError("an order needs at least one sample, got an empty dataset; check its folder and split.")

    def index(self, number: int) -> int:
        if number < 0:
            raise ConfigError(f"the data position counts samples from 0, got {number}.")
        epoch, place = divmod(number, self.length)
        if not self.shuffle or self.length >= ENDLESS:
            return place
        return int(_permutation(self.length, self.seed, epoch)[place])


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(random.Random(f"order {seed} {epoch}").getrandbits(63))
    return torch.randperm(length, generator=generator)


def share(batch_size: int, rank: int = 0, size: int = 1) -> list[int]:
    """Which places of a batch belong to process `rank` of `size`.

    A share of even size takes as many places of the first half of the batch as of the second, in the same order: image i and
    image i + B / 2, which contrastive pairing makes partners, are in one share, and are partners in it by the same rule.
    Raises ConfigError where the batch cannot be divided.
    """
    if size < 1 or not 0 <= rank < size or batch_size % size:
        raise ConfigError(f"a batch of {batch_size} images cannot be divided among {size} processes; choose a multiple of {size}.")
    own = batch_size // size
    if own % 2:
        return list(range(rank * own, (rank + 1) * own))
    half = range(rank * own // 2, (rank + 1) * own // 2)
    return [*half, *(batch_size // 2 + place for place in half)]
