"""Optimizer state on disk: each tensor whole, or in pieces that several processes wrote and any number of them reads back.

A checkpoint holds optimizer.safetensors, or one optimizer-00001-of-00002.safetensors for each process. A whole tensor has the
key 'weight.exp_avg', a piece of the flattened tensor 'weight.exp_avg@4096', where 4096 is the place of its first number. So a
checkpoint does not depend on the engine, the number of processes or the ZeRO stage that wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ocl.errors import CheckpointError

_WAY_OUT = "go on from an older checkpoint"


def file_name(rank: int, size: int) -> str:
    """What process `rank` of `size` calls its file."""
    return "optimizer.safetensors" if size == 1 else f"optimizer-{rank + 1:05d}-of-{size:05d}.safetensors"


def piece_name(key: str, start: int, count: int, whole: int) -> str:
    """The key of numbers start ... start + count - 1 of a tensor that holds `whole` of them."""
    return key if count == whole else f"{key}@{start}"


@final
class Moments:
    """Reads the optimizer state of one checkpoint, tensor by tensor. Raises CheckpointError for a file that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pieces: dict[str, list[tuple[int, Path, str]]] = {}
        for path in sorted(folder.glob("optimizer*.safetensors")):
            for saved in _keys(path):
                key, _, start = saved.partition("@")
                self._pieces.setdefault(key, []).append((int(start or 0), path, saved))

    @property
    def names(self) -> frozenset[str]:
        """'<parameter name>.<moment>' of every tensor."""
        return frozenset(self._pieces)

    def whole(self, key: str, shape: Sequence[int]) -> Tensor:
        """One tensor. One that was written whole keeps its own shape, so that the caller can see that it does not fit."""
        pieces = self._pieces[key]
        if len(pieces) == 1 and "@" not in pieces[0][2]:
            return _read(pieces[0][1], key)
        return self.piece(key, 0, math.prod(shape)).view(*shape)

    def piece(self, key: str, start: int, stop: int) -> Tensor:
        """Numbers start ... stop - 1 of a flattened tensor. Raises CheckpointError where one of them was not saved."""
        found, at = [], start
        for first, path, saved in sorted(self._pieces.get(key, [])):
            if first > at or at >= stop:
                continue
            values = _read(path, saved).flatten()[at - first : stop - first]
            found.append(values)
            at += len(values)
        if at < stop:
            raise CheckpointError(f"{self._folder} holds {key} up to number {at}, but {stop} are needed; {_WAY_OUT}.")
        return torch.cat(found) if found else torch.empty(0)


def check_names(found: Iterable[str], trained: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if a key of the state names no trained parameter."""
    for key in found:
        if key.rpartition(".")[0] not in trained:
            way_out = "resume with the model, and the frozen parts, that it was written with"
            raise CheckpointError(f"optimizer state {key} fits no trained parameter; {way_out}.")


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); {_WAY_OUT}.") from error


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor
