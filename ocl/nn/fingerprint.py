"""What a frozen part computes, as JSON values that change when its settings or its weights do; no weight is loaded for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ocl.nn.freezing import Frozen

_PLAIN = (bool, int, float, str, type(None))


def part_fingerprint(part: nn.Module) -> dict[str, Any]:
    """Settings of a part and of everything in it, and hashes of the files that its frozen weights lie in.

    The part may have been made on the meta device; it is not run. Weights that lie in no file are in `state_digest` only.
    """
    settings = {name: _settings(module) for name, module in _outside_frozen(part)}
    weights: dict[str, str] = {}
    for name, module in _outside_frozen(part):
        if isinstance(module, Frozen) and module.files is not None:
            weights |= {f"{name}/{path.name}".lstrip("/"): _file_digest(path) for path in module.files()}
    return {"settings": settings, "weights": weights}


def state_digest(part: nn.Module) -> str | None:
    """A hash of all tensors that lie in no file of published weights; None where there is none. The part must be real."""
    found = hashlib.sha256()
    num_tensors = 0
    for name, module in _outside_frozen(part):
        if isinstance(module, Frozen) and module.files is not None:
            continue
        own = module.state_dict() if isinstance(module, Frozen) else {**dict(module.named_parameters(recurse=False)),
                                                                      **dict(module.named_buffers(recurse=False))}  # fmt: skip
        for key, tensor in sorted(own.items()):
            value = tensor.detach().cpu().contiguous()
            found.update(f"{name}.{key} {value.dtype} {list(value.shape)}".encode())
            found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
            num_tensors += 1
    return found.hexdigest() if num_tensors else None


def changes(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) for every value that differs between two nested mappings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [change for key in keys for change in changes(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))]
    return [] if old == new else [(name, old, new)]


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The same as lines: 'place: old -> new'."""
    return [f"{place}: {_short(before)} -> {_short(after)}" for place, before, after in changes(old, new, name)]


def _outside_frozen(part: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module in a part but those inside a `Frozen`, each with its dotted name."""
    yield name, part
    if not isinstance(part, Frozen):
        for child_name, child in part.named_children():
            yield from _outside_frozen(child, f"{name}.{child_name}".lstrip("."))


def _settings(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, Frozen):
        return {"class": "Frozen"}
    plain = {name: _plain(value) for name, value in vars(module).items() if name != "training" and _is_plain(value)}
    internal = set(vars(nn.Module()))
    return {"class": type(module).__qualname__} | {name: value for name, value in plain.items() if name not in internal}


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value)))


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that what was written equals what is compared with it."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:28] + "..." + text[-28:]
