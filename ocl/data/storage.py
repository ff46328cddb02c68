"""How computed tensors lie in a cache: float32, float16, bfloat16, or 8 bits with one scale for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ocl.errors import RangeError

Storage = Literal["fp32", "fp16", "bf16", "int8"]

DTYPES: Mapping[Storage, torch.dtype] = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8,
}  # fmt: skip
SCALE = ".scale"  # ends the name of what 8-bit values are multiplied by


def pack(name: str, values: Tensor, storage: Storage) -> dict[str, Tensor]:
    """[..., D] -> what is stored under `name`. int8: round(127 v / m) with m the largest |v| of the last dimension, and m / 127.

    Raises RangeError for values that are not finite, before or after.
    """
    values = values.detach().float().cpu()
    if storage != "int8":
        packed = values.to(DTYPES[storage])
        if not bool(packed.isfinite().all()):
            raise RangeError(f"{name} reach {values.abs().max():.3g}, which {storage} cannot hold; use bf16 or fp32.")
        return {name: packed.contiguous()}
    if not bool(values.isfinite().all()):
        raise RangeError(f"{name} hold NaN or infinite values; check the weights and `ocl data check`.")
    scale = values.abs().amax(dim=-1) / 127
    whole = (values / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round().clamp(-127, 127)
    return {name: whole.to(torch.int8).contiguous(), name + SCALE: scale.contiguous()}


def unpack(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    """What `pack` was given, in float32, up to rounding."""
    values = stored[name].float()
    scale = stored.get(name + SCALE)
    return values if scale is None else values * scale[..., None]
