"""A process that kills itself at a chosen file operation, for the programs that tests start (train, scale)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import ocl.train.checkpoint
import ocl.train.files

Operation = Callable[..., Any]


def counted_down(number: int) -> Callable[[Operation], Operation]:
    """Wraps operations, all of which count down together; SIGKILL comes right before the n-th call."""
    left = number

    def counted(operation: Operation) -> Operation:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return wrapper

    return counted


def kill_in_checkpoint(number: int) -> None:
    """SIGKILL this process right before its n-th write, sync, rename or removal inside a checkpoint."""
    counted = counted_down(number)
    ocl.train.files.save_file = counted(ocl.train.files.save_file)
    for name in ("sync", "write_json"):
        setattr(ocl.train.checkpoint, name, counted(getattr(ocl.train.checkpoint, name)))
    os.rename, os.unlink = counted(os.rename), counted(os.unlink)
