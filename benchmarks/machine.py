"""Which machine and which versions a result was made with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def hardware(device: str) -> str:
    """A folder name for this machine: its GPU, or its CPU, the widest vectors of that, and the number of cores."""
    name = torch.cuda.get_device_name() if device != "cpu" else f"{cpu()}-{vectors()}-{os.cpu_count()}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def vectors() -> str:
    """Processors of one name may differ in what they multiply at once: the widest of these instruction sets."""
    flags = _cpuinfo("flags").split()
    return next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags), "")


def _cpuinfo(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def environment(device: str) -> dict[str, Any]:
    return {
        "hardware": hardware(device), "cpu": cpu(), "cores": os.cpu_count(), "commit": commit(),
        "torch": torch.__version__, "python": platform.python_version(), "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip


def commit() -> str:
    """Of the checkout that this file lies in, with "+" where source files differ from it; "unknown" outside of git."""
    found = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ":(top)", ":(top,exclude)benchmarks/results")
    return (found + ("+" if changed else "")) or "unknown"


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
