"""Checkpoints, written whole or not at all: run/checkpoints/step-00001000/{*.safetensors, state.json, config.yaml}.

A checkpoint is written into a hidden sibling folder, synced, and renamed; so a folder that carries the name is complete.
state.json holds the position in the run and the size and SHA-256 of every other file. No pickle, nothing in it is executed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ocl.errors import CheckpointError
from ocl.nn.freezing import lies_in, load_trainable_state_dict, parts_of, trainable_state_dict
from ocl.train.files import WRITE_ERRORS, fingerprint, read_tensors, sync, write_json, write_tensors

MODEL, AVERAGE, STATE, CONFIG = "model.safetensors", "ema.safetensors", "state.json", "config.yaml"
_FORMAT = 1
_WRITING, _DELETING = ".writing-", ".deleting-"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood: `step` updates made, `samples` images consumed; `engine` is the state in the engine's `snapshot`."""

    path: Path
    step: int
    samples: int
    seed: int
    engine: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Snapshot:
    """What one process has to write: tensors by file name, and JSON values that are the same in all processes."""

    files: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write the files into an existing folder. Returns size and SHA-256 of each. Raises OSError, SafetensorError."""
        for name, tensors in self.files.items():
            write_tensors(folder / name, tensors)
        for name in self.files:
            sync(folder / name)
        return {name: fingerprint(folder / name) for name in self.files}


def prepare(run: Path, step: int) -> Path:
    """Make the hidden folder that becomes the checkpoint of a step. Raises CheckpointError if that step was saved before."""
    folder = run / "checkpoints"
    final = _name(run, step)
    if final.exists():
        raise CheckpointError(f"{final} exists already and is not overwritten; resume the run, or choose another run folder.")
    temporary = folder / f"{_WRITING}{final.name}"
    with guarded(run, step):
        temporary.mkdir(parents=True)
    return temporary


def finish(
    run: Path, *, files: Mapping[str, Mapping[str, Any]], engine: Mapping[str, Any], step: int, samples: int, seed: int,
    keep: int = 2,
) -> Path:  # fmt: skip
    """Turn the hidden folder, in which all `files` lie, into the checkpoint, then remove all but the newest `keep`.

    engine: JSON values for `Engine.load`. run/config.yaml is copied if present. Returns the folder.
    """
    folder, final = run / "checkpoints", _name(run, step)
    temporary = folder / f"{_WRITING}{final.name}"
    with guarded(run, step):
        if (run / CONFIG).exists():
            shutil.copyfile(run / CONFIG, temporary / CONFIG)
            sync(temporary / CONFIG)
            files = {**files, CONFIG: fingerprint(temporary / CONFIG)}
        position = {"format": _FORMAT, "step": step, "samples": samples, "seed": seed}
        write_json(temporary / STATE, {**position, "engine": engine, "files": dict(sorted(files.items()))})
        for path in (temporary / STATE, temporary):
            sync(path)
        os.rename(temporary, final)
        sync(folder)
    for old in complete(run)[:-keep]:
        _remove(old)
    return final


@contextmanager
def guarded(run: Path, step: int) -> Iterator[None]:
    """Inside, a disk that fills up becomes a CheckpointError. What was begun is still to be discarded."""
    try:
        yield
    except WRITE_ERRORS as error:
        raise CheckpointError(
            f"{_name(run, step)} could not be written ({error}); training stopped, {_last(run)}; free some space and resume."
        ) from error


def discard(run: Path, step: int) -> None:
    """Remove what was begun of a checkpoint, once no process writes to it any more."""
    shutil.rmtree(run / "checkpoints" / f"{_WRITING}{_name(run, step).name}", ignore_errors=True)


def complete(run: Path) -> list[Path]:
    """Folders of all checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def latest(run: Path) -> Path | None:
    """Folder of the newest checkpoint of a run, or None."""
    found = complete(run)
    return found[-1] if found else None


def clean(run: Path) -> None:
    """Remove what a killed process left of unfinished writes and removals. Call it only where no other process trains."""
    for pattern in (f"{_WRITING}*", f"{_DELETING}*"):
        for path in (run / "checkpoints").glob(pattern):
            shutil.rmtree(path)


def load(path: Path, *, rank: int = 0, size: int = 1) -> Checkpoint:
    """Read a checkpoint's state and check its files against it. Raises CheckpointError if one is missing or damaged.

    With several processes each checks every `size`-th file; they must tell one another.
    """
    found = _read_state(path)
    _verify(found, sorted(found.files)[rank::size])
    return found


def load_model(run_or_checkpoint: Path, model: nn.Module, *, ema: bool = True) -> Checkpoint:
    """Fill a model for inference, with the averaged weights if the run kept them and `ema` is true.

    Reads and checks only the weights, so optimizer files may be deleted from a checkpoint that is not to be resumed.
    Raises CheckpointError if there is no checkpoint, if it is damaged, or if it belongs to another model.
    """
    found = _read_state(find(run_or_checkpoint))
    name = AVERAGE if ema and AVERAGE in found.files else MODEL
    _verify(found, [name])
    fill(model, found.path / name)
    return found


def find(run_or_checkpoint: Path) -> Path:
    """The folder itself if it is a checkpoint, else the newest one of that run. Raises CheckpointError if there is none."""
    if (run_or_checkpoint / STATE).exists():
        return run_or_checkpoint
    newest = latest(run_or_checkpoint)
    if newest is None:
        raise CheckpointError(f"{run_or_checkpoint} holds no checkpoint; pass a folder that `ocl train` wrote.")
    return newest


def fill(model: nn.Module, path: Path, parts: Collection[str] = ()) -> None:
    """Load trained weights from one file. Raises CheckpointError, naming keys, if they belong to another model.

    parts: only what lies below these names is read, such as slot_module; of them the file may lack tensors, which stay as
    they are, but must not hold others. Nothing given reads everything and demands everything.
    """
    tensors = read_tensors(path)
    if parts:
        tensors = _chosen(model, tensors, parts, path)
    try:
        load_trainable_state_dict(model, tensors)
    except CheckpointError as error:
        way_out = f"compare {path.parent / CONFIG} with your config"
        raise CheckpointError(f"{path} does not fit this model: {error} To see why, {way_out}.") from error


def _chosen(model: nn.Module, tensors: Mapping[str, Tensor], parts: Collection[str], path: Path) -> dict[str, Tensor]:
    """The model's own tensors, with those of `parts` out of `tensors`."""
    own, found = trainable_state_dict(model), dict[str, Tensor]()
    for part in parts:
        named = {name: tensor for name, tensor in tensors.items() if lies_in(name, part)}
        if not named:
            raise CheckpointError(f"{path} holds nothing called {part}, only {parts_of(tensors)}; correct training.start_parts.")
        found |= named
    return {**own, **found}


def _name(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _read_state(path: Path) -> Checkpoint:
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        written = state["format"]
        files = {name: {"bytes": int(file["bytes"]), "sha256": str(file["sha256"])} for name, file in state["files"].items()}
        numbers = (int(state["step"]), int(state["samples"]), int(state["seed"]))
        found = Checkpoint(path, *numbers, engine=dict(state["engine"]), files=files)
    except OSError as error:
        raise CheckpointError(f"{path / STATE} cannot be read ({error.strerror}); {_other(path)}.") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path / STATE} is damaged ({type(error).__name__}: {error}); {_other(path)}.") from error
    if written != _FORMAT:
        way_out = "read it with the version of ocl that wrote it"
        raise CheckpointError(f"{path} has format {written}, but this version reads format {_FORMAT}; {way_out}.")
    return found


def _verify(found: Checkpoint, names: Iterable[str]) -> None:
    for name in names:
        path = found.path / name
        if name not in found.files or not path.is_file():
            raise CheckpointError(f"{path} is missing; {_other(found.path)}.")
        expected, size = found.files[name], path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{path} must hold {expected['bytes']} bytes, but holds {size}; {_other(found.path)}.")
        if fingerprint(path) != expected:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {STATE}; {_other(found.path)}.")


def _other(path: Path) -> str:
    others = [other.name for other in complete(path.parent.parent) if other != path]
    return f"remove {path.name} to go on from {others[-1]}" if others else "no other checkpoint lies beside it, start a new run"


def _last(run: Path) -> str:
    newest = latest(run)
    return f"the last complete checkpoint is {newest.name}" if newest else "the run has no checkpoint yet"


def _remove(path: Path) -> None:
    doomed = path.with_name(_DELETING + path.name)
    os.rename(path, doomed)  # a kill inside rmtree must not leave a folder that looks complete
    shutil.rmtree(doomed)
