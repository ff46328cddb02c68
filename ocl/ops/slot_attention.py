"""One grouping step of Slot Attention (Locatello et al. 2020, algorithm 1, lines 5 to 8) as a function on tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ocl.errors import ShapeError

EpsOn = Literal["weights", "denominator"]


def slot_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, eps: float = 1e-8, eps_on: EpsOn = "weights"
) -> tuple[Tensor, Tensor]:
    """Tokens choose among slots, slots average the tokens that chose them.

    query [B, H, K, D], key [B, H, N, D], value [B, H, N, E] -> updates [B, H, K, E], attn [B, H, K, N].
    attn = softmax of scale * key . query over (heads x slots) for each token, in float32 or wider.
    updates = w value, w = (attn + eps) / sum over tokens of (attn + eps); with eps_on="denominator" eps is added to the
    sum only. scale: default 1 / sqrt(D). Raises ShapeError where the sizes of B, H, N or D disagree.
    """
    _check_shapes(query, key, value)
    _, heads, num_slots, width = query.shape
    logits = (query * (width**-0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    attn = at_least_float32(logits).flatten(1, 2).softmax(dim=1).unflatten(1, (heads, num_slots))
    if eps_on == "weights":
        weights = attn + eps
        weights = weights / weights.sum(dim=-1, keepdim=True)
    else:
        weights = attn / (attn.sum(dim=-1, keepdim=True) + eps)
    return weights.to(value.dtype) @ value, attn


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened, float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise ShapeError(f"slot_attention expects {name} of rank 4, [B, H, ., .], got {list(tensor.shape)}.")
    if query.shape[:2] != key.shape[:2] or query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            "slot_attention expects query [B, H, K, D] and key [B, H, N, D] with equal B, H and D, "
            f"got {list(query.shape)} and {list(key.shape)}."
        )
    if key.shape[:3] != value.shape[:3]:
        raise ShapeError(
            "slot_attention expects key [B, H, N, D] and value [B, H, N, E] with equal B, H and N, "
            f"got {list(key.shape)} and {list(value.shape)}."
        )
