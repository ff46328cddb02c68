"""The processes of a run, and what they tell one another besides gradients: flags, numbers, errors. Over gloo, on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from ocl.errors import OCLError, ProcessError

T = TypeVar("T")
_SILENT = ("timed out", "timeout")
_GONE = (*_SILENT, "connection", "peer", "broken pipe", "socket", "gloo", "nccl")
_LETTING_GO = 0.5  # seconds; a thread of gloo that still holds a tensor of the last talk when Python ends aborts the process


@final
@dataclass(frozen=True)
class World:
    """This process is number `rank` of `size`. Every method that talks must be called by all processes, in the same order.

    A process that is gone makes the others raise ProcessError; an error of one that is caught here is raised by all.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    timeout: timedelta | None = None

    @classmethod
    def of_launched(cls, *, timeout: float) -> World:
        """All processes of the default process group, with a group of their own for talk. timeout: seconds without an answer."""
        patience = timedelta(seconds=timeout)
        group = dist.new_group(backend="gloo", timeout=patience)
        return cls(dist.get_rank(), dist.get_world_size(), group, patience)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which of the flags are set in at least one process."""
        if self.size == 1:
            return flags
        values = torch.tensor([int(flag) for flag in flags])
        with self.talking():
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return tuple(bool(value) for value in values.tolist())

    def mean(self, values: Tensor) -> Tensor:
        """Mean over processes of a float64 tensor on the CPU, which all of them hold in one shape."""
        if self.size == 1:
            return values
        total = values.clone()
        with self.talking():
            dist.all_reduce(total, group=self.group)
        return total / self.size

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self.talking():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def together(self, function: Callable[[], T]) -> T:
        """Call `function` in every process. If it raises a user error or OSError in one of them, all raise."""
        if self.size == 1:
            return function()
        error: Exception | None = None
        result: Any = None
        try:
            result = function()
        except (OCLError, OSError) as caught:
            error = caught
        self._raise_any(self.gather(error), error)
        return result

    def first(self, function: Callable[[], T]) -> T:
        """Call `function` in process 0 only; all get its result, or raise its error."""
        if self.size == 1:
            return function()
        result: Any = None
        error: Exception | None = None
        if self.is_first:
            try:
                result = function()
            except (OCLError, OSError) as caught:
                error = caught
        result, error = self.gather((result, error))[0]
        self._raise_any([error], error)
        return result

    def limit_waiting(self) -> None:
        """Have all process groups, also those that others made, wait as long as this one; torch's own limits are 10 and 30 min."""
        if self.timeout is not None:
            for group in distributed_c10d._world.pg_map:
                distributed_c10d._set_pg_timeout(self.timeout, group)

    def leave(self) -> None:
        """Part from the other processes, who need not be there any more."""
        if self.size > 1 or self.group is not None:
            dist.destroy_process_group()
            time.sleep(_LETTING_GO)

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Inside, what torch raises when another process is gone becomes a ProcessError."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or isinstance(error, ProcessError) or not any(word in str(error).lower() for word in _GONE):
                raise
            who, reason = f"process {self.rank} of {self.size}", _first_line(error)
            if any(word in reason.lower() for word in _SILENT):
                raise ProcessError(
                    f"{who} got no answer from another one in engine.timeout ({reason}); it hangs, its node is gone, or it needs "
                    "longer, in which case raise engine.timeout; restart with --resume."
                ) from error
            raise ProcessError(
                f"{who} lost another one ({reason}); the launcher says which, and its output why; restart with --resume, or "
                "launch with `torchrun --max-restarts N`."
            ) from error

    @staticmethod
    def _raise_any(errors: Sequence[Exception | None], own: Exception | None) -> None:
        found = own or next((error for error in errors if error is not None), None)
        if found is not None:
            raise found


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
