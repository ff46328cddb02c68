"""Files that are whole or absent: tensors without pickle, hashes, and syncs that survive a power cut."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ocl.errors import CheckpointError

WRITE_ERRORS = (OSError, SafetensorError)  # what a full disk, a quota or a lost mount raises


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors of any device and layout as safetensors; those that share memory are written once each."""
    seen: set[int] = set()
    plain = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        shares = value.numel() > 0 and value.untyped_storage().data_ptr() in seen
        plain[name] = value.clone() if shares else value
        seen.add(plain[name].untyped_storage().data_ptr())
    save_file(plain, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What `write_tensors` wrote, on the CPU. Runs no code from the file. Raises CheckpointError if it cannot be read."""
    try:
        return load_file(path)
    except WRITE_ERRORS as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); fetch or write it again.") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file as it lies on disk."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Give a file new content at one stroke: a reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)
