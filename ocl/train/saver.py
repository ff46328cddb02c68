"""When and by whom a checkpoint is written: every process its own files, at once or in the background, and process 0 the rest."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ocl.errors import CheckpointError
from ocl.train import checkpoint
from ocl.train.checkpoint import Snapshot
from ocl.train.engine import Engine
from ocl.train.options import Training


@dataclass(frozen=True)
class _Begun:
    step: int
    samples: int
    state: Any
    written: Future[dict[str, dict[str, Any]]]


@final
class Saver:
    """Saves an engine into `run`. Its methods are called by all processes in the same order.

    `last` is the newest complete checkpoint. One that is being written in the background becomes complete in `settle`, which
    the loop calls when `busy` is false everywhere; the next save, and the end of the run, wait for it.
    """

    def __init__(self, engine: Engine, training: Training, run: Path, last: Path | None) -> None:
        self._engine, self._training, self._run, self.last = engine, training, run, last
        self._begun: _Begun | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if training.write_in_background else None

    @property
    def pending(self) -> bool:
        """A checkpoint is begun and not complete; the same in all processes."""
        return self._begun is not None

    @property
    def busy(self) -> bool:
        """This process is still writing its files."""
        return self._begun is not None and not self._begun.written.done()

    def save(self, step: int, samples: int) -> None:
        """Begin a checkpoint, and unless it is written in the background complete it. Raises CheckpointError, everywhere."""
        self.settle()
        world = self._engine.world
        folder = world.first(lambda: checkpoint.prepare(self._run, step))
        snapshot = self._engine.snapshot(copy=self._thread is not None)
        written: Future[dict[str, dict[str, Any]]]
        if self._thread is not None:
            written = self._thread.submit(self._write, snapshot, folder, step)
        else:
            written = Future()
            try:
                written.set_result(self._write(snapshot, folder, step))
            except CheckpointError as error:
                written.set_exception(error)
        self._begun = _Begun(step, samples, snapshot.state, written)
        if self._thread is None:
            self.settle()

    def settle(self) -> None:
        """Wait for all processes' files of the checkpoint begun, if one is, and complete it."""
        if self._begun is None:
            return
        begun, self._begun = self._begun, None
        world, training = self._engine.world, self._training
        try:
            own = world.together(begun.written.result)
            files = {name: found for each in world.gather(own) for name, found in each.items()}
            self.last = world.first(lambda: checkpoint.finish(
                self._run, files=files, engine=begun.state, step=begun.step, samples=begun.samples, seed=training.seed,
                keep=training.keep_checkpoints,
            ))  # fmt: skip
        except CheckpointError:
            if world.is_first:
                checkpoint.discard(self._run, begun.step)
            raise

    def _write(self, snapshot: Snapshot, folder: Path, step: int) -> dict[str, dict[str, Any]]:
        with checkpoint.guarded(self._run, step):
            return snapshot.write(folder)
