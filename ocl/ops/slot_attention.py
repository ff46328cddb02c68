"""One grouping step of Slot Attention (Locatello et al. 2020, algorithm 1, lines 5 to 8) as a function on tensors.

    attn = softmax over (heads x slots) of scale * query . key, for each token
    updates = w value,  w = (attn + eps) / sum over tokens of (attn + eps)

`reference` is the operator as plain, differentiable PyTorch; `_forward` and `_backward` are the explicit formulas that compiled
libraries replace (csrc/slot_attention).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ocl.errors import ConfigError, ShapeError
from ocl.ops import _library
from ocl.ops.dtypes import DTYPE_NAMES, DTYPES, as_autocast, at_least_float32, without_autocast

EpsOn = Literal["weights", "denominator"]


@overload
def slot_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = ..., eps: float = ..., eps_on: EpsOn = ...,
    return_attn: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def slot_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = ..., eps: float = ..., eps_on: EpsOn = ...,
    return_attn: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def slot_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    eps: float = 1e-8,
    eps_on: EpsOn = "weights",
    return_attn: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Tokens choose among slots, slots average the tokens that chose them.

    query [B, H, K, D], key [B, H, N, D], value [B, H, N, E] -> updates [B, H, K, E]; with return_attn also attn [B, H, K, N],
    the softmax of scale * key . query over (heads x slots) for each token, in float32 (float64 for float64). No [K, N] array is
    written unless asked for. eps is added to every weight, or with eps_on="denominator" to their sum over tokens only.
    scale: default 1 / sqrt(D). Where key and value are one tensor (`key is value`), it is read once and its gradient written
    once. Differentiable once, deterministic, computed with float32 softmax and sums. Under autocast inputs are cast as for
    a matrix product.
    Raises ShapeError for ranks, sizes, dtypes or devices that disagree, naming the argument; ConfigError for another eps_on.
    """
    shared = key is value
    if shared:
        query, key = as_autocast(query, key)
        value = key
    else:
        query, key, value = as_autocast(query, key, value)
    check(query, key, value)
    if eps_on not in ("weights", "denominator"):
        raise ConfigError(f"slot_attention: eps_on is weights or denominator, got {eps_on!r}; choose one.")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(query.device):
        if _by_reference(query, key, value):
            updates, attn = reference(query, key, value, scale=scale, eps=eps, eps_on=eps_on)
        else:
            updates, _, attn = _operator(
                query, key, None if shared else value, scale, eps, eps_on == "weights", return_attn
            )
    return (updates, attn) if return_attn else updates


def reference(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, eps: float, eps_on: EpsOn = "weights"
) -> tuple[Tensor, Tensor]:
    """The operator in plain PyTorch: (updates, attn)."""
    attn = _compete(query, key, scale)
    weights, _ = _weights(attn, eps, eps_on == "weights")
    return (weights @ at_least_float32(value)).to(value.dtype), attn


def _compete(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Softmax over heads x slots for each token, [B, H, K, N]."""
    logits = scale * (at_least_float32(query) @ at_least_float32(key).transpose(-1, -2))
    return logits.flatten(1, 2).softmax(dim=1).unflatten(1, logits.shape[1:3])


def _weights(attn: Tensor, eps: float, eps_on_weights: bool) -> tuple[Tensor, Tensor]:
    """attn -> weights that sum to one over tokens (up to eps), and the totals they were divided by, [B, H, K]."""
    if eps_on_weights:
        attn = attn + eps
        total = attn.sum(dim=-1)
    else:
        total = attn.sum(dim=-1) + eps
    return attn / total[..., None], total


def check(query: Tensor, key: Tensor, value: Tensor) -> None:
    """ShapeError naming the argument that breaks a rule."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise _wrong(f"{name} of rank 4, [B, H, ., .]", list(tensor.shape), f"for one head use {name}[:, None]")
        if tensor.dtype not in DTYPES:
            raise _wrong(f"{name} of floating point ({DTYPE_NAMES})", tensor.dtype, f"use {name}.float()")
        if tensor.dtype != query.dtype:
            raise _wrong(f"{name} in the dtype of query", f"{tensor.dtype} and {query.dtype}", "convert one, or use autocast")
        if tensor.device != query.device:
            raise _wrong(f"{name} on the device of query", f"{tensor.device} and {query.device}", f"use {name}.to(query.device)")
    if query.shape[:2] != key.shape[:2] or query.shape[-1] != key.shape[-1]:
        rule = "query [B, H, K, D] and key [B, H, N, D] with equal B, H and D"
        raise _wrong(rule, f"{list(query.shape)} and {list(key.shape)}", "project both to one width")
    if key.shape[:3] != value.shape[:3]:
        rule = "key [B, H, N, D] and value [B, H, N, E] with equal B, H and N"
        raise _wrong(rule, f"{list(key.shape)} and {list(value.shape)}", "take both from the same tokens")
    if query.shape[1] * query.shape[2] == 0 or query.shape[-1] == 0:
        raise _wrong("at least one head, one slot and D > 0", list(query.shape), "pass a slot")


def _wrong(rule: str, got: object, way_out: str) -> ShapeError:
    return ShapeError(f"slot_attention expects {rule}, got {got}; {way_out}.")


def _by_reference(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether plain PyTorch computes this; else the operator does, compiled where there is a library for the device."""
    name = _library.active_backend()
    if name == "reference":
        return True
    missing = _library.why_not_fused("slot_attention", query, _sizes(query, key, value))
    if name == "fused" and missing is not None:
        raise ConfigError(f'slot_attention was asked for backend "fused", but {missing}; or use backend("auto").')
    return missing is not None and (_library.has_kernels(query.device) or _library.transforming())


def _sizes(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, ...]:
    return (query.shape[1], query.shape[2], query.shape[3], value.shape[3], int(key is value))


# The dispatcher's operators -----------------------------------------------------------------------------------------------------
# `value` is None where it is the key.

_library.OPERATORS.define(
    "slot_attention_forward(Tensor query, Tensor key, Tensor? value, float scale, float eps, bool eps_on_weights, bool with_attn) "
    "-> (Tensor updates, Tensor total, Tensor attn)"
)
_library.OPERATORS.define(
    "slot_attention_backward(Tensor grad_updates, Tensor? grad_attn, Tensor query, Tensor key, Tensor? value, Tensor updates, "
    "Tensor total, float scale, float eps, bool eps_on_weights, int wanted) -> (Tensor, Tensor, Tensor)"
)


def _forward(
    query: Tensor, key: Tensor, value: Tensor | None, scale: float, eps: float, eps_on_weights: bool, with_attn: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What csrc/slot_attention computes forward, on any device and in any floating dtype."""
    attn = _compete(query, key, scale)
    weights, total = _weights(attn, eps, eps_on_weights)
    updates = weights @ at_least_float32(key if value is None else value)
    return _rows_outside(updates, query.dtype), total, attn.contiguous() if with_attn else attn.new_empty(_without_attn(attn.shape))


def _backward(
    grad_updates: Tensor, grad_attn: Tensor | None, query: Tensor, key: Tensor, value: Tensor | None, updates: Tensor,
    total: Tensor, scale: float, eps: float, eps_on_weights: bool, wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What csrc/slot_attention computes backward: gradients of query, key (with both paths where value is None) and value."""
    attn = _compete(query, key, scale)
    total = total[..., None]
    weights = (attn + eps if eps_on_weights else attn) / total
    dtype, shared, tokens = query.dtype, value is None, at_least_float32(key)
    values = tokens if value is None else at_least_float32(value)
    query, grad_updates, updates = at_least_float32(query), at_least_float32(grad_updates), at_least_float32(updates)
    dchosen = (grad_updates @ values.transpose(-1, -2) - (grad_updates * updates).sum(dim=-1, keepdim=True)) / total
    if grad_attn is not None:
        dchosen = dchosen + grad_attn
    dlogits = scale * attn * (dchosen - (attn * dchosen).sum(dim=(1, 2), keepdim=True))
    grads: list[Tensor | None] = [None, None, None]
    if wanted & 1:
        grads[0] = dlogits @ tokens
    if wanted & 2 and shared:  # both paths are one product: [dlogits; w]^T [query; dupdates]
        grads[1] = torch.cat([dlogits, weights], dim=2).transpose(-1, -2) @ torch.cat([query, grad_updates], dim=2)
    elif wanted & 2:
        grads[1] = dlogits.transpose(-1, -2) @ query
    if wanted & 4 and not shared:
        grads[2] = weights.transpose(-1, -2) @ grad_updates
    grad_query, grad_key, grad_value = (
        query.new_empty(0, dtype=dtype) if grad is None else _rows_outside(grad, dtype) for grad in grads
    )
    return grad_query, grad_key, grad_value


def _rows_outside(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, rows, D] as it is, in memory [B, rows, H, D], which joining the heads needs."""
    return x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)


def _without_attn(shape: torch.Size) -> tuple[int, ...]:
    return (shape[0], shape[1], 0, shape[3])


_library.OPERATORS.impl("slot_attention_forward", _forward, "CompositeExplicitAutograd")
_library.OPERATORS.impl("slot_attention_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("ocl::slot_attention_forward")
def _(query, key, value, scale, eps, eps_on_weights, with_attn):  # type: ignore[no-untyped-def]
    batch, heads, num_slots, _ = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    return (
        query.new_empty(batch, num_slots, heads, (key if value is None else value).shape[3]).transpose(1, 2),
        query.new_empty(batch, heads, num_slots, dtype=wide),
        query.new_empty(batch, heads, num_slots if with_attn else 0, key.shape[2], dtype=wide),
    )


@torch.library.register_fake("ocl::slot_attention_backward")
def _(  # type: ignore[no-untyped-def]
    grad_updates, grad_attn, query, key, value, updates, total, scale, eps, eps_on_weights, wanted
):
    def like(tensor, bit):  # type: ignore[no-untyped-def]
        if tensor is None or not wanted >> bit & 1:
            return query.new_empty(0)
        batch, heads, rows, width = tensor.shape
        return query.new_empty(batch, rows, heads, width).transpose(1, 2)

    return tuple(like(tensor, bit) for bit, tensor in enumerate((query, key, value)))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, *ctx.options, ctx.with_attn = inputs
    ctx.save_for_backward(query, key, value, output[0], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_updates: Tensor | None, _: Tensor | None, grad_attn: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, updates, total = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    grad_attn = grad_attn if ctx.with_attn else None
    if (grad_updates is None and grad_attn is None) or not any(needed):
        return (None,) * 7
    if grad_updates is None:
        grad_updates = torch.zeros_like(updates)
    wanted = sum(1 << bit for bit, need in enumerate(needed) if need)
    grads = torch.ops.ocl.slot_attention_backward(grad_updates, grad_attn, query, key, value, updates, total, *ctx.options, wanted)
    return (*(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None, None, None)


_operator = _library.differentiable("slot_attention_forward", _save, _differentiate)
_library.refuse_second_derivative("slot_attention_backward")
