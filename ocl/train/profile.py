"""Where the time of a run goes: floating-point operations per second, and traces of single updates."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, final

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ocl.train.meter import Summary
from ocl.train.world import World

_WARMUP = 2  # updates before a trace: the first ones compile, allocate and fill caches


@final
class Flops:
    """Counts the operations of the first update of every kind, and tells from them which share of the device's peak is used.

    Counted are products of matrices, convolutions and attention, forward and backward, as torch names them; operators of our
    own are not, nor what activation checkpointing computes for the second time: it takes time and brings nothing.
    peak_tflops: what one device can do; None counts nothing.
    """

    def __init__(self, peak_tflops: float | None, world: World) -> None:
        self._peak, self._world = peak_tflops, world
        self._known: dict[Hashable, int] = {}
        self._done = 0

    @contextmanager
    def counting(self, kind: Hashable = None) -> Iterator[None]:
        """Around every update. kind: updates of one kind do the same operations, such as those before the end of a warm-up."""
        if self._peak is None:
            yield
            return
        if kind not in self._known:
            counter = useful_flops()
            with counter:
                yield
            self._known[kind] = counter.get_total_flops()
        else:
            yield
        self._done += self._known[kind]

    def rates(self, summary: Summary) -> dict[str, float]:
        """TFLOP/s of one process since the last call, and its share of the peak (MFU)."""
        done, self._done = self._done, 0
        if self._peak is None:
            return {}
        rate = done / summary.seconds / 1e12
        return {"tflops": rate, "mfu": rate / self._peak}


def useful_flops() -> FlopCounterMode:
    """torch's counter, which leaves out what a backward pass computes again because of activation checkpointing."""
    formulas = {operation: _unless_recomputed(formula) for operation, formula in flop_registry.items()}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _unless_recomputed(formula: Callable[..., int]) -> Callable[..., int]:
    @wraps(formula)
    def counted(*args: Any, **options: Any) -> int:
        # within a backward pass gradients are on only where a forward pass is run again
        recomputed = torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()
        return 0 if recomputed else formula(*args, **options)

    vars(counted)["_get_raw"] = True  # torch would turn tensors into shapes, which its own formulas do themselves
    return counted


@final
class Trace:
    """Writes run/profile/rank-00000.json, a trace of `updates` updates after the first two of this start; 0 writes none.

    `finish` writes what there is of it when the run ends earlier.
    """

    def __init__(self, run: Path, rank: int, updates: int, device: torch.device) -> None:
        self._path, self._updates, self._seen = run / "profile" / f"rank-{rank:05d}.json", updates, 0
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        made = torch.profiler.profile(activities=kinds, record_shapes=True) if updates else None
        self._profiler: torch.profiler.profile | None = made

    @contextmanager
    def update(self) -> Iterator[None]:
        """Around every update."""
        if self._profiler is None:
            yield
            return
        self._seen += 1
        if self._seen == _WARMUP + 1:
            self._profiler.start()
        yield
        if self._seen == _WARMUP + self._updates:
            self._write(self._profiler)

    def finish(self) -> str | None:
        """The run ends here. Says what the trace lacks of the updates that were asked for; None where it lacks nothing."""
        if self._profiler is None:
            return None
        asked, traced = f"training.profile={self._updates}", self._seen - _WARMUP
        if traced < 1:
            made = f"this start made {self._seen} updates and the first {_WARMUP} are left out"
            return f"{asked}: nothing was traced, {made}"
        self._write(self._profiler)
        return f"{asked}: the trace holds {traced} updates, this start made no more"

    def _write(self, profiler: torch.profiler.profile) -> None:
        profiler.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._path))
        self._profiler = None
