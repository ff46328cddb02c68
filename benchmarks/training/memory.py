"""Time and memory of a call on either device."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def now(device: str) -> float:
    """Seconds: of the wall clock beside a GPU; of this process's processor time on a CPU, which other programs do not change."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def peak_mib(call: Callable[[], object], device: str) -> float | None:
    """MiB above what was held before, by CUDA's allocator or, on Linux, by the process; None elsewhere."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not PEAK.exists():
        return None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    resident = _kib("VmRSS")
    PEAK.write_text("5")  # the peak starts again from here
    call()
    return (_kib("VmHWM") - resident) / 2**10


def _kib(name: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0])
