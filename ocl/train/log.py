"""What a run tells: run/log.jsonl and TensorBoard for machines, a progress bar or plain lines for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ocl.errors import CheckpointError
from ocl.train.files import replace_text
from ocl.train.options import Tracker
from ocl.train.services import SERVICES


@final
class Journal:
    """One JSON line per log step in run/log.jsonl, and the same numbers in run/tensorboard.

    Lines after `step`, where this run starts or resumes, are removed from both: a step is told once. A value that is not
    finite is written as null. track: services that get the same numbers. Raises MissingExtra where one is not installed.
    """

    def __init__(self, run: Path, *, step: int, track: Sequence[Tracker] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._services = [SERVICES[name](run) for name in track]

        path = run / "log.jsonl"
        if path.exists():
            replace_text(path, "".join(_lines_until(path, step)))
        self._file = path.open("ab", buffering=0)  # each line is one write, so a kill tears at most the last one
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of one step. Raises CheckpointError if the disk is full."""
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._file.write((json.dumps({"step": step, **line}) + "\n").encode())
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
            for service in self._services:
                service.write(step, {name: value for name, value in values.items() if math.isfinite(value)})
        except OSError as error:
            way_out = "the last checkpoint is intact, free some space and resume"
            raise CheckpointError(f"{self._file.name} could not be written ({error}); training stopped; {way_out}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        for service in self._services:
            service.close()
        with suppress(OSError):  # all that counts was flushed, a full disk was reported
            self._board.close()


@final
class Display:
    """A bar with samples/s, time left and loss on a terminal; elsewhere one plain line per log step."""

    def __init__(self, *, step: int, steps: int, console: Console | None = None, quiet: bool = False) -> None:
        self._console = console or Console(quiet=quiet)
        self._steps = steps
        self._bar = Progress(
            TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("train", total=steps, completed=step, status="")

    def step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a log step."""
        status = f"loss {values['loss']:.4g} · {values['samples_per_second']:.4g} samples/s"
        self._bar.update(self._task, completed=step, status=status)
        if not self._console.is_terminal:
            left = self._bar.tasks[0].time_remaining
            self.say(f"step {step}/{self._steps}  {status}" + (f"  {left:.0f} s left" if left else ""))
        scores = "  ".join(f"{name[5:]} {value:.4g}" for name, value in values.items() if name.startswith("eval/"))
        if scores:
            self.say(f"step {step}  {scores}")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()


def _lines_until(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n") and int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # a line that a power cut tore
    return kept
