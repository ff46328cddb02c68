"""What happened since the last log line: means, rates, who was slow, and whether every number was finite."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ocl.errors import RangeError
from ocl.train.world import World

MAX_SKIPPED = 30  # updates in a row; fp16 halves its loss scale of 2^16 at each, so this many means that no scale helps


@dataclass(frozen=True)
class Summary:
    """Means over the steps since the last line and over all processes; `losses` holds one mean per loss.

    data_wait: share of the wall time that went by waiting for data, in the process that waited longest.
    memory_gib: largest memory of a process so far: that of its GPU, or of the process itself on a CPU.
    seconds: wall time. slowest_rank, slowest_by: the process whose data and forward passes took longest, and by what share
    longer than the mean; None for a run on one process. At ZeRO stage 3 a pass waits for the weights that others send, so the
    time of a slow process is counted for all, and slowest_by says little.
    """

    loss: float
    losses: Mapping[str, float]
    grad_norm: float
    skipped: int
    samples_per_second: float
    data_wait: float
    memory_gib: float
    seconds: float
    slowest_rank: int | None = None
    slowest_by: float | None = None


@final
class Meter:
    """Collects values on their device and reads them together, so that steps need not wait for one another."""

    def __init__(self, *, skips_overflow: bool, device: torch.device | None = None, world: World | None = None) -> None:
        self._skips_overflow = skips_overflow
        self._device, self._world = device or torch.device("cpu"), world or World()
        self._skipped_in_a_row = 0
        self.restart()

    def restart(self) -> None:
        """Forget all values and start the clock."""
        self._losses: list[dict[str, Tensor]] = []
        self._norms: list[Tensor] = []
        self._keys: list[tuple[str, ...]] = []
        self._steps: list[int] = []
        self._passes: list[tuple[Any, Any]] = []
        self._samples, self._waited, self._started = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Counts the time inside, on the device, as a forward pass. Below ZeRO stage 3 no process waits for another in it."""
        before = self._now()
        yield
        self._passes.append((before, self._now()))

    def add_pass(self, losses: Mapping[str, Tensor], keys: tuple[str, ...], num_samples: int) -> None:
        """One forward pass of this process: the value of each loss, and which samples it saw."""
        self._losses.append({name: value.detach() for name, value in losses.items()})
        self._keys.append(keys)
        self._samples += num_samples

    def add_step(self, step: int, norm: Tensor) -> None:
        """The update `step` that ends the passes added since the last one."""
        self._norms.append(norm)
        self._steps += [step] * (len(self._losses) - len(self._steps))

    def summarize(self) -> Summary:
        """Read everything since `restart`. Raises RangeError, naming step and samples, if a loss or gradient was not finite."""
        names = list(self._losses[0])
        table = torch.stack([torch.stack([row[name].double() for name in names]) for row in self._losses]).cpu()
        table = self._world.mean(table)
        norms = torch.stack(self._norms).double().tolist()
        seconds = max(time.perf_counter() - self._started, 1e-9)
        total = table.sum(1).tolist()
        self._check(total, norms)
        for norm in norms:
            self._skipped_in_a_row = 0 if math.isfinite(norm) else self._skipped_in_a_row + 1
            if self._skipped_in_a_row == MAX_SKIPPED:
                where = f"{MAX_SKIPPED} updates in a row, up to step {self._steps[-1]}"
                raise RangeError(f"fp16 skipped {where}: the gradient overflows at any scale; use bf16 and resume from")
        finite = [norm for norm in norms if math.isfinite(norm)]
        return Summary(
            loss=sum(total) / len(total),
            losses=dict(zip(names, table.mean(0).tolist(), strict=True)),
            grad_norm=sum(finite) / len(finite) if finite else math.nan,
            skipped=len(norms) - len(finite),
            samples_per_second=self._world.size * self._samples / seconds,
            seconds=seconds,
            **self._processes(seconds),
        )

    def _processes(self, seconds: float) -> dict[str, Any]:
        own = self._waited + sum(_between(before, after) for before, after in self._passes)
        waited, memory, busy = zip(*self._world.gather((self._waited, _memory_gib(self._device), own)), strict=True)
        found: dict[str, Any] = {"data_wait": min(1.0, max(waited) / seconds), "memory_gib": max(memory)}
        if self._world.size > 1:
            mean = max(sum(busy) / len(busy), 1e-9)
            found |= {"slowest_rank": busy.index(max(busy)), "slowest_by": max(busy) / mean - 1}
        return found

    def _check(self, total: list[float], norms: list[float]) -> None:
        by_step = dict(zip(dict.fromkeys(self._steps), norms, strict=True))
        for index, (step, loss) in enumerate(zip(self._steps, total, strict=True)):
            norm = by_step[step]
            if math.isfinite(loss) and (math.isfinite(norm) or self._skips_overflow):
                continue
            own = torch.stack(list(self._losses[index].values())).sum().item()
            seen = self._world.gather((math.isfinite(own), self._keys[index]))
            bad = [keys for finite, keys in seen if not finite] or [keys for _, keys in seen]
            _raise(step, sum(bad, ()), loss, norm)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(before: Any, after: Any) -> float:
    if isinstance(before, float):
        return float(after - before)
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _raise(step: int, keys: tuple[str, ...], loss: float, norm: float) -> None:
    what = f"gradient (norm {norm}, loss {loss:.4g})" if math.isfinite(loss) else f"loss ({loss})"
    names = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    raise RangeError(
        f"training expects a finite loss and gradient, but at step {step} the {what} was not, on samples [{names}]; "
        "lower training.optimizer.lr, lengthen training.schedule.warmup_steps, set training.clip, prefer bf16 to fp16, "
        "or look for a broken sample with `ocl data check`; then resume from"
    )
