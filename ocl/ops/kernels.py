"""Which implementation each operator takes on each device of this machine, and why."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import torch

from ocl.ops._library import LIBRARIES, native, native_summary


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
    rows = [Kernel("label_contingency", "cpu", "C++" if compiled else "reference", native_summary())]
    rows += [_attention(operator, "cpu", "cpu") for operator in ("register_attention", "slot_attention")]
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        rows.append(Kernel("label_contingency", name, "reference", "torch.bincount; the compiled one is for the CPU"))
        rows += [_attention(operator, "cuda", name) for operator in ("register_attention", "slot_attention")]
    if torch.cuda.device_count() == 0:
        reason = LIBRARIES["cuda"].missing or "no GPU is visible"
        rows += [Kernel(operator, "cuda", "none", reason) for operator in ("register_attention", "slot_attention")]
    return tuple(rows)


def _why_this_isa() -> str:
    asked = os.environ.get("OCL_CPU_ISA")
    return f"OCL_CPU_ISA={asked}" if asked else "widest instruction set of this processor"


def cpu_isa() -> str | None:
    """What compiled CPU operators use here ("portable", "avx2", "avx512", "avx512_bf16", "amx"); None without them."""
    if LIBRARIES["cpu"].path is None:
        return None
    ask = LIBRARIES["cpu"].call("ocl_cpu_isa")
    ask.restype = ctypes.c_char_p
    return ask().decode()


def _attention(operator: str, device: str, name: str) -> Kernel:
    library = LIBRARIES[device]
    if library.path is None:
        instead = "torch's SDPA, or the reference for maps and sinks" if operator == "register_attention" else "products of torch"
        return Kernel(operator, name, "reference", f"{library.missing}; until then {instead}")
    other = "float64 and sizes without a kernel go to torch" if device == "cuda" else "float64 goes to torch"
    if device == "cpu":
        products = {"amx": "bf16 on AMX tiles, ", "avx512_bf16": "products of bf16 pairs, "}
        special = products.get(str(cpu_isa()), "") if operator == "register_attention" else ""
        sums = f"{special}bf16 and fp16 summed in fp32"
        return Kernel(operator, name, f"fused C++, {cpu_isa()}", f"{_why_this_isa()}; {sums}; {other}")
    return Kernel(operator, name, "fused CUDA", f"ocl/lib/{library.path.name} loaded; {other}")
