"""Attention of the queries of an image to keys of its own, by whatever is fastest on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ocl.ops import _library
from ocl.ops.kernels import cpu_isa
from ocl.ops.register_attention import register_attention

# Where ocl.ops.register_attention without registers beats torch's SDPA on a CPU. Measured on 16 to 4096 keys: AVX-512 takes
# 0.2 to 0.7 of the time, forward and with gradients, AVX2 0.8 to 1.0 in float32 but up to 1.3 in bfloat16.
_FASTER: dict[str | None, tuple[torch.dtype, ...]] = {
    "avx2": (torch.float32,),
    "avx512": _library.FUSED_DTYPES,
    "avx512_bf16": _library.FUSED_DTYPES,
    "amx": _library.FUSED_DTYPES,
}
_FASTER_HERE = _FASTER.get(cpu_isa(), ())


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(D)) value: query [B, H, M, D], key and value [B, H, N, D] -> [B, H, M, D].

    On a CPU by the compiled `register_attention` without registers where that is faster (`ocl bench ops --device cpu --op
    register_attention --sizes B=4 H=8 M=1024 K=1024 R=0 D=40` compares), else by torch's SDPA. Raises what these raise.
    """
    faster = query.device.type == "cpu" and query.dtype in _FASTER_HERE and not _library.transforming()
    if faster and _library.active_backend() in ("auto", "fused"):
        none = query.new_empty(query.shape[1], 0, query.shape[3])
        return register_attention(query, key, value, none, none)
    return F.scaled_dot_product_attention(query, key, value)
