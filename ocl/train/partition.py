"""Which numbers of which trained weight a process holds: DeepSpeed's partitions, and the one of the moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ocl.errors import CheckpointError
from ocl.train.world import World


@dataclass(frozen=True)
class Piece:
    """Numbers start ... start + count - 1 of the flattened weight `name` are numbers offset ... of the optimizer's array `flat`."""

    name: str
    flat: Tensor
    offset: int
    start: int
    count: int


def pieces(optimizer: Any, trained: Mapping[str, nn.Parameter], stage: int, world: World) -> list[Piece]:
    """What this process updates. Read from undocumented attributes of DeepSpeed's optimizers; tests/scale checks them."""
    if stage == 0:
        return [Piece(name, value, 0, 0, value.numel()) for name, value in trained.items()]
    names = {id(value): name for name, value in trained.items()}
    if stage == 3:
        return [_third(optimizer, names[id(value)], value, world.rank) for value in trained.values()]
    return [
        Piece(names[id(value)], flat, in_flat.start, in_weight.start, in_flat.numel)
        for flat, group in zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True)
        for value in group
        if (held := value._hp_mapping) is not None
        for in_flat, in_weight in [(held.hp_fragment_address, held.lp_fragment_address)]
    ]


def _third(optimizer: Any, name: str, value: Any, rank: int) -> Piece:
    group, offset, count = optimizer.grad_position[optimizer.get_param_id(value)]
    start = min(rank * count, value.ds_numel)
    return Piece(name, optimizer.fp32_partitioned_groups_flat[group], offset, start, min(count, value.ds_numel - start))


@final
class Average:
    """The moving average of trained weights (ocl.train.ema), of which each process keeps one equal part of every weight."""

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float, world: World) -> None:
        self._trained, self._decay, self._world = trained, decay, world
        self._shapes = {name: getattr(value, "ds_shape", value.shape) for name, value in trained.items()}
        self._parts = {name: self._part(value).clone() for name, value in trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, value in self._trained.items():
            self._parts[name].lerp_(self._part(value), 1 - self._decay)

    def whole(self) -> dict[str, Tensor]:
        """The average by name. All processes must ask together."""
        return {name: self._join(part, self._shapes[name]) for name, part in self._parts.items()}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take over an average. Raises CheckpointError where it belongs to other weights."""
        for name, part in self._parts.items():
            if name not in saved or saved[name].shape != self._shapes[name]:
                raise CheckpointError(f"the saved average does not fit this model: {name} is missing or of another shape; "
                                      "resume with the config that it was written with.")  # fmt: skip
            part.copy_(self._cut(saved[name].flatten()))

    def _part(self, value: Any) -> Tensor:
        partition: Tensor | None = getattr(value, "ds_tensor", None)
        return self._cut(value.detach().flatten()) if partition is None else partition.detach()

    def _cut(self, flat: Tensor) -> Tensor:
        count = math.ceil(flat.numel() / self._world.size)
        part = flat[self._world.rank * count : (self._world.rank + 1) * count]
        return nn.functional.pad(part, (0, count - part.numel()))

    def _join(self, part: Tensor, shape: torch.Size) -> Tensor:
        if self._world.size > 1:
            parts = [torch.empty_like(part) for _ in range(self._world.size)]
            dist.all_gather(parts, part)
            part = torch.cat(parts)
        return part[: math.prod(shape)].view(shape)
