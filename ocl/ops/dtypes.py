"""Dtypes of operators: what autocast asks for, and sums that are never narrower than float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

KINDS = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla", "privateuseone")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPE_NAMES = "float32, float64, bfloat16 or float16"
AUTOCASTING = frozenset(kind for kind in KINDS if torch.amp.is_autocast_available(kind))  # asked once: torch 2.10 cannot trace it


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast would give a matrix product, so that the backward computes in it too."""
    kind = tensors[0].device.type
    narrow = (torch.float16, torch.bfloat16, torch.float32)  # autocast leaves float64 and integers alone
    if not _autocasts(kind) or any(tensor.dtype not in narrow for tensor in tensors):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """For formulas that choose their own dtypes."""
    return torch.autocast(device.type, enabled=False) if _autocasts(device.type) else nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened, float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _autocasts(kind: str) -> bool:
    return kind in AUTOCASTING and torch.is_autocast_enabled(kind)
