"""What happened since the last log line: means, rates, and whether every number was finite."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ocl.errors import RangeError

MAX_SKIPPED = 30  # updates in a row; fp16 halves its loss scale of 2^16 at each, so this many means that no scale helps


@dataclass(frozen=True)
class Summary:
    """Means over the steps since the last line; `losses` holds one mean per loss, `data_wait` is a share of the wall time."""

    loss: float
    losses: Mapping[str, float]
    grad_norm: float
    skipped: int
    samples_per_second: float
    data_wait: float


@final
class Meter:
    """Collects values on their device and reads them together, so that steps need not wait for one another."""

    def __init__(self, *, skips_overflow: bool) -> None:
        self._skips_overflow = skips_overflow
        self._skipped_in_a_row = 0
        self.restart()

    def restart(self) -> None:
        """Forget all values and start the clock."""
        self._losses: list[dict[str, Tensor]] = []
        self._norms: list[Tensor] = []
        self._keys: list[tuple[str, ...]] = []
        self._steps: list[int] = []
        self._samples, self._waited, self._started = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def add_pass(self, losses: Mapping[str, Tensor], keys: tuple[str, ...], num_samples: int) -> None:
        """One forward pass: the value of each loss, and which samples it saw."""
        self._losses.append({name: value.detach() for name, value in losses.items()})
        self._keys.append(keys)
        self._samples += num_samples

    def add_step(self, step: int, norm: Tensor) -> None:
        """The update `step` that ends the passes added since the last one."""
        self._norms.append(norm)
        self._steps += [step] * (len(self._losses) - len(self._steps))

    def summarize(self) -> Summary:
        """Read everything since `restart`. Raises RangeError, naming step and samples, if a loss or gradient was not finite."""
        seconds = time.perf_counter() - self._started
        losses = {name: torch.stack([row[name] for row in self._losses]).double().cpu() for name in self._losses[0]}
        norms = torch.stack(self._norms).double().tolist()
        total = torch.stack(list(losses.values())).sum(0).tolist()
        by_step = dict(zip(dict.fromkeys(self._steps), norms, strict=True))
        for step, keys, loss in zip(self._steps, self._keys, total, strict=True):
            self._check(step, keys, loss, by_step[step])
        for norm in norms:
            self._skipped_in_a_row = 0 if math.isfinite(norm) else self._skipped_in_a_row + 1
            if self._skipped_in_a_row == MAX_SKIPPED:
                where = f"{MAX_SKIPPED} updates in a row, up to step {self._steps[-1]}"
                raise RangeError(f"fp16 skipped {where}: the gradient overflows at any scale; use bf16 and resume from")
        finite = [norm for norm in norms if math.isfinite(norm)]
        return Summary(
            loss=sum(total) / len(total),
            losses={name: values.mean().item() for name, values in losses.items()},
            grad_norm=sum(finite) / len(finite) if finite else math.nan,
            skipped=len(norms) - len(finite),
            samples_per_second=self._samples / max(seconds, 1e-9),
            data_wait=min(1.0, self._waited / max(seconds, 1e-9)),
        )

    def _check(self, step: int, keys: tuple[str, ...], loss: float, norm: float) -> None:
        if math.isfinite(loss) and (math.isfinite(norm) or self._skips_overflow):
            return
        what = f"gradient (norm {norm}, loss {loss:.4g})" if math.isfinite(loss) else f"loss ({loss})"
        names = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        raise RangeError(
            f"training expects a finite loss and gradient, but at step {step} the {what} was not, on samples [{names}]; "
            "lower training.optimizer.lr, lengthen training.schedule.warmup_steps, set training.clip, prefer bf16 to fp16, "
            "or look for a broken sample with `ocl data check`; then resume from"
        )
