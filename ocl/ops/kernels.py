"""Which implementation each operator takes on each device of this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ocl.ops._library import native, native_summary


@dataclass(frozen=True)
class Kernel:
    """One row of `ocl describe ops`."""

    operator: str
    device: str
    implementation: str
    reason: str


def kernels() -> tuple[Kernel, ...]:
    """One row per operator and device."""
    compiled = native() is not None
    rows = [
        Kernel("label_contingency", "cpu", "C++" if compiled else "reference", native_summary()),
        Kernel("slot_attention", "cpu", "reference", "matrix products of torch; no compiled kernel exists yet"),
    ]
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        rows += [
            Kernel("label_contingency", name, "reference", "torch.bincount; the compiled one is for the CPU"),
            Kernel("slot_attention", name, "reference", "matrix products of torch; no compiled kernel exists yet"),
        ]
    return tuple(rows)
