"""One grouping step of Slot Attention (Locatello et al. 2020, algorithm 1, lines 5 to 8) as a function on tensors."""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    Where key and value are one tensor, a backward of its own reads and writes it half as often; it runs once, without a
    second derivative.
    """
    _check_shapes(query, key, value)
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if key is value:
        return _SharedTokens.apply(*_as_autocast(query, key), eps, eps_on)
    attn = _compete(query @ key.transpose(-1, -2))
    return _weights(attn, eps, eps_on)[0].to(value.dtype) @ value, attn


def _compete(logits: Tensor) -> Tensor:
    """[B, H, K, N] -> softmax over heads x slots for each token."""
    heads = logits.shape[1:3]
    return at_least_float32(logits).flatten(1, 2).softmax(dim=1).unflatten(1, heads)


def _weights(attn: Tensor, eps: float, eps_on: EpsOn) -> tuple[Tensor, Tensor]:
    """attn -> weights that sum to one over tokens (up to eps), and the totals they were divided by, [B, H, K, 1]."""
    if eps_on == "weights":
        attn = attn + eps
        total = attn.sum(dim=-1, keepdim=True)
    else:
        total = attn.sum(dim=-1, keepdim=True) + eps
    return attn / total, total


@final
class _SharedTokens(torch.autograd.Function):
    """slot_attention(query, x, x) with scaled queries. Both paths to dx are one product: [dlogits; w]^T [query; dmeans]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, x: Tensor, eps: float, eps_on: EpsOn) -> tuple[Tensor, Tensor]:
        attn = _compete(query @ x.transpose(-1, -2))
        weights, total = _weights(attn, eps, eps_on)
        ctx.save_for_backward(query, x, attn, weights, total)
        return weights.to(x.dtype) @ x, attn

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmeans: Tensor, dattn: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        query, x, attn, weights, total = ctx.saved_tensors
        dweights = (dmeans @ x.transpose(-1, -2)).to(attn.dtype)
        dchosen = (dweights - (dweights * weights).sum(dim=-1, keepdim=True)) / total + dattn
        dlogits = (attn * (dchosen - (attn * dchosen).sum(dim=(1, 2), keepdim=True))).to(x.dtype)
        dquery = dlogits @ x if ctx.needs_input_grad[0] else None
        dx = None
        if ctx.needs_input_grad[1]:
            dx = torch.cat([dlogits, weights.to(x.dtype)], dim=2).transpose(-1, -2) @ torch.cat([query, dmeans], dim=2)
        return dquery, dx, None, None


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast would give a matrix product, so that the backward computes in it too."""
    kind = tensors[0].device.type
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)  # autocast leaves it alone
    if wide or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


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
