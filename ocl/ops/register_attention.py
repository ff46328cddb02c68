"""Cross-attention to slots and registers under one softmax: slots belong to an image, registers to the whole batch (CODA, 2026).

    logits = scale * query . [key; register_key]     attn = softmax over K slots, R registers and the sink
    output = attn [value; register_value]            maps = mean over heads of attn on the slots

`reference` is the operator as plain, differentiable PyTorch; `_forward` and `_backward` are the explicit formulas that compiled
libraries replace (csrc/register_attention).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ocl.errors import ConfigError, MissingExtra, ShapeError
from ocl.ops import _library
from ocl.ops.dtypes import DTYPE_NAMES, DTYPES, as_autocast, at_least_float32, without_autocast

TENSORS = ("query", "key", "value", "register_key", "register_value", "sink_logits")  # bit i of `wanted` asks for TENSORS[i]


@overload
def register_attention(
    query: Tensor, key: Tensor, value: Tensor, register_key: Tensor, register_value: Tensor, *, scale: float | None = ...,
    slot_mask: Tensor | None = ..., sink_logits: Tensor | None = ..., return_maps: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def register_attention(
    query: Tensor, key: Tensor, value: Tensor, register_key: Tensor, register_value: Tensor, *, scale: float | None = ...,
    slot_mask: Tensor | None = ..., sink_logits: Tensor | None = ..., return_maps: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def register_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    register_key: Tensor,
    register_value: Tensor,
    *,
    scale: float | None = None,
    slot_mask: Tensor | None = None,
    sink_logits: Tensor | None = None,
    return_maps: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of M queries to the K slots of their own image and to R registers that the whole batch shares.

    query [B, H, M, D], key and value [B, H, K, D], register_key and register_value [H, R, D]; K or R may be 0, not both.
    slot_mask: bool [B, K], False = that slot is left out of the softmax. All False: registers only; with R = 0 and no sink the
    output of that image is zero.
    sink_logits: [H], one more logit per head that takes attention and gives no value (it is not multiplied by `scale`).
    scale: default 1 / sqrt(D).
    Returns output [B, H, M, D] in the dtype of query; with return_maps also maps [B, K, M] in float32 (float64 for float64):
    attention mass of each slot, mean over heads; 1 - sum over K went to the registers and the sink. Both are differentiable
    once, deterministic, and computed with float32 softmax and sums; the compiled operator writes the output as [B, M, H, D]
    in memory, so that joining heads is free. Under autocast inputs are cast as for a matrix product.
    Raises ShapeError for ranks, sizes, dtypes or devices that disagree, naming the argument.
    """
    tensors = as_autocast(query, key, value, register_key, register_value)
    check(*tensors, slot_mask=slot_mask, sink_logits=sink_logits)
    scale = tensors[0].shape[-1] ** -0.5 if scale is None else scale
    run = _choose(*tensors, slot_mask=slot_mask, sink_logits=sink_logits, return_maps=return_maps)
    with without_autocast(query.device):
        output, maps = run(*tensors, scale=scale, slot_mask=slot_mask, sink_logits=sink_logits, return_maps=return_maps)
    return (output, maps) if return_maps else output


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    register_key: Tensor,
    register_value: Tensor,
    *,
    scale: float,
    slot_mask: Tensor | None = None,
    sink_logits: Tensor | None = None,
    return_maps: bool = True,
) -> tuple[Tensor, Tensor]:
    """The operator in plain PyTorch: (output, maps). Writes all [B, H, M, K + R] probabilities."""
    keys, values = _with_registers(key, register_key, slot_mask), _with_registers(value, register_value, slot_mask)
    logits = scale * (at_least_float32(query) @ keys.transpose(-1, -2))
    attn, _ = _softmax(logits, _attended(slot_mask, register_key.shape[1]), sink_logits)
    return (attn @ values).to(query.dtype), attn[..., : key.shape[2]].mean(dim=1).transpose(1, 2)


def _joined(slots: Tensor, registers: Tensor, slot_mask: Tensor | None) -> Tensor:
    """Keys or values [B, H, K, D] and [H, R, D] -> [B, H, K + R, D].

    Masked slots, which may hold anything, become zeros: 0 * NaN is NaN.
    """
    if slot_mask is not None:
        slots = slots.masked_fill(~slot_mask[:, None, :, None], 0)
    return torch.cat([slots, registers.expand(slots.shape[0], *registers.shape)], dim=2)


def _with_registers(slots: Tensor, registers: Tensor, slot_mask: Tensor | None) -> Tensor:
    """The same in float32 or wider."""
    return at_least_float32(_joined(slots, registers, slot_mask))


def _attended(slot_mask: Tensor | None, num_registers: int) -> Tensor | None:
    """Which of the K + R keys each image attends to: bool [B, 1, 1, K + R]."""
    return None if slot_mask is None else F.pad(slot_mask, (0, num_registers), value=True)[:, None, None]


def _softmax(logits: Tensor, attended: Tensor | None, sink_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities over the last dimension, and the logarithm of what they were divided by, [B, H, M].

    A row without anything to attend to has probabilities 0 and logarithm -inf.
    """
    if attended is not None:
        logits = logits.masked_fill(~attended, -torch.inf)
    if sink_logits is not None:
        sink = sink_logits.to(logits.dtype)[:, None, None].expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sink], dim=-1)
    logsumexp = logits.logsumexp(dim=-1)
    empty = (logsumexp == -torch.inf)[..., None]
    attn = logits.masked_fill(empty, 0).softmax(dim=-1).masked_fill(empty, 0)
    return (attn if sink_logits is None else attn[..., :-1]), logsumexp


def check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    register_key: Tensor,
    register_value: Tensor,
    *,
    slot_mask: Tensor | None,
    sink_logits: Tensor | None,
) -> None:
    """ShapeError naming the argument that breaks a rule."""
    named = {"query": query, "key": key, "value": value, "register_key": register_key, "register_value": register_value}
    for name, tensor in named.items():
        rank, form = (3, "[H, R, D]") if name.startswith("register") else (4, "[B, H, ., D]")
        if tensor.ndim != rank:
            raise _wrong(f"{name} of rank {rank}, {form}", list(tensor.shape), _rank_hint(name, tensor))
        if tensor.dtype not in DTYPES:
            raise _wrong(f"{name} of floating point ({DTYPE_NAMES})", tensor.dtype, f"use {name}.float()")
        if tensor.dtype != query.dtype:
            raise _wrong(f"{name} in the dtype of query", f"{tensor.dtype} and {query.dtype}", "convert one, or use autocast")
    batch, heads, _, width = query.shape
    if (key.shape[0], key.shape[1], key.shape[3]) != (batch, heads, width):
        raise _wrong("query [B, H, M, D] and key [B, H, K, D] with equal B, H and D", _two(query, key), "check the head layout")
    if value.shape != key.shape:
        raise _wrong("key and value of one shape [B, H, K, D]", _two(key, value), "project both from the same slots")
    if (register_key.shape[0], register_key.shape[2]) != (heads, width):
        raise _wrong("register_key [H, R, D] with H and D of query", _two(register_key, query), "registers have no batch dimension")
    if register_value.shape != register_key.shape:
        raise _wrong("register_key and register_value of one shape", _two(register_key, register_value), "project both alike")
    if width == 0 or key.shape[2] + register_key.shape[1] == 0:
        raise _wrong("D > 0 and K + R > 0", f"D={width}, K={key.shape[2]}, R={register_key.shape[1]}", "pass a key")
    if slot_mask is not None and (slot_mask.dtype != torch.bool or slot_mask.shape != (batch, key.shape[2])):
        got = f"{slot_mask.dtype} {list(slot_mask.shape)}"
        raise _wrong(f"slot_mask of bool [B, K] = [{batch}, {key.shape[2]}]", got, "True marks slots that are attended to")
    if sink_logits is not None and (sink_logits.shape != (heads,) or sink_logits.dtype not in DTYPES):
        got = f"{sink_logits.dtype} {list(sink_logits.shape)}"
        raise _wrong(f"sink_logits of floating point ({DTYPE_NAMES}), [H] = [{heads}]", got, "one logit per head")
    for name, other in (*named.items(), ("slot_mask", slot_mask), ("sink_logits", sink_logits)):
        if other is not None and other.device != query.device:
            raise _wrong(f"{name} on the device of query", f"{other.device} and {query.device}", f"use {name}.to(query.device)")


def _wrong(rule: str, got: object, way_out: str) -> ShapeError:
    return ShapeError(f"register_attention expects {rule}, got {got}; {way_out}.")


def _two(left: Tensor, right: Tensor) -> str:
    return f"{list(left.shape)} and {list(right.shape)}"


def _rank_hint(name: str, tensor: Tensor) -> str:
    if name.startswith("register") and tensor.ndim == 4:
        return f"registers are shared by the batch: pass {name}[0]"
    return f"split heads with {name}.unflatten(-1, (H, D)).transpose(-3, -2)"


# How it is computed -----------------------------------------------------------------------------------------------------------


def _choose(query: Tensor, key: Tensor, value: Tensor, register_key: Tensor, register_value: Tensor, **options: Any) -> Any:
    """The implementation that the active backend names, or under "auto" the fastest one that can take these inputs."""
    name = _library.active_backend()
    if name == "reference":
        return reference
    if name in ("sdpa", "xformers"):
        return _sdpa if name == "sdpa" else _xformers
    missing = _library.why_not_fused("register_attention", query, (key.shape[2] + register_key.shape[1], query.shape[3]))
    if missing is None:
        return _fused
    if name == "fused":
        raise ConfigError(f'register_attention was asked for backend "fused", but {missing}; or use backend("auto").')
    plain = not options["return_maps"] and options["sink_logits"] is None
    return _sdpa if plain and (options["slot_mask"] is None or register_key.shape[1] > 0) else reference


def _fused(
    query: Tensor, key: Tensor, value: Tensor, register_key: Tensor, register_value: Tensor, *,
    scale: float, slot_mask: Tensor | None, sink_logits: Tensor | None, return_maps: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    output, _, maps = _operator(
        query, key, value, register_key, register_value, slot_mask, sink_logits, scale, return_maps
    )
    return output, maps


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, register_key: Tensor, register_value: Tensor, *,
    scale: float, slot_mask: Tensor | None, sink_logits: Tensor | None, return_maps: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """torch's scaled_dot_product_attention on keys concatenated for every image; it knows neither maps nor sinks."""
    _refuse("sdpa", sink_logits, return_maps)
    keys, values = _joined(key, register_key, slot_mask), _joined(value, register_value, slot_mask)
    attended = _attended(slot_mask, register_key.shape[1])
    output = F.scaled_dot_product_attention(query, keys, values, attn_mask=attended, scale=scale)
    if attended is not None and register_key.shape[1] == 0:  # without a key left: zeros, whatever the kernel says
        output = torch.where(attended.any(dim=-1, keepdim=True), output, 0)
    return output, query.new_empty(0)


def _xformers(
    query: Tensor, key: Tensor, value: Tensor, register_key: Tensor, register_value: Tensor, *,
    scale: float, slot_mask: Tensor | None, sink_logits: Tensor | None, return_maps: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """xformers' memory-efficient attention on concatenated keys, with an additive bias where there is a mask."""
    _refuse("xformers", sink_logits, return_maps)
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        raise MissingExtra('register_attention with backend "xformers"', "xformers", "xformers") from None
    keys, values = (_joined(*pair, slot_mask).transpose(1, 2) for pair in ((key, register_key), (value, register_value)))
    bias = None
    attended = _attended(slot_mask, register_key.shape[1])
    if attended is not None:
        sizes = (*query.shape[:3], keys.shape[1])
        bias = query.new_zeros(sizes).masked_fill_(~attended, -torch.inf)
    output = memory_efficient_attention(query.transpose(1, 2), keys, values, attn_bias=bias, scale=scale)
    return output.transpose(1, 2), query.new_empty(0)


def _refuse(name: str, sink_logits: Tensor | None, return_maps: bool) -> None:
    if return_maps or sink_logits is not None:
        what = "maps" if return_maps else "sinks"
        raise ConfigError(f'register_attention: backend "{name}" has no {what}; use backend("auto") or "reference".')


# The dispatcher's operators -----------------------------------------------------------------------------------------------------

_library.OPERATORS.define(
    "register_attention_forward(Tensor query, Tensor key, Tensor value, Tensor register_key, Tensor register_value, "
    "Tensor? slot_mask, Tensor? sink_logits, float scale, bool with_maps) -> (Tensor output, Tensor logsumexp, Tensor maps)"
)
_library.OPERATORS.define(
    "register_attention_backward(Tensor grad_output, Tensor? grad_maps, Tensor query, Tensor key, Tensor value, "
    "Tensor register_key, Tensor register_value, Tensor? slot_mask, Tensor? sink_logits, Tensor logsumexp, float scale, "
    "int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, register_key: Tensor, register_value: Tensor,
    slot_mask: Tensor | None, sink_logits: Tensor | None, scale: float, with_maps: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What csrc/register_attention computes forward, on any device and in any floating dtype."""
    keys, values = _with_registers(key, register_key, slot_mask), _with_registers(value, register_value, slot_mask)
    logits = scale * (at_least_float32(query) @ keys.transpose(-1, -2))
    attn, logsumexp = _softmax(logits, _attended(slot_mask, register_key.shape[1]), sink_logits)
    num_slots = key.shape[2] if with_maps else 0
    maps = attn[..., :num_slots].mean(dim=1).transpose(1, 2).contiguous()
    return _rows_outside(attn @ values, query.dtype), logsumexp, maps


def _backward(
    grad_output: Tensor, grad_maps: Tensor | None, query: Tensor, key: Tensor, value: Tensor, register_key: Tensor,
    register_value: Tensor, slot_mask: Tensor | None, sink_logits: Tensor | None, logsumexp: Tensor, scale: float, wanted: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What csrc/register_attention computes backward: gradients in the order of TENSORS, empty where not wanted."""
    num_slots, width = key.shape[2], query.dtype
    keys, values = _with_registers(key, register_key, slot_mask), _with_registers(value, register_value, slot_mask)
    query, grad_output = at_least_float32(query), at_least_float32(grad_output)
    logits = scale * (query @ keys.transpose(-1, -2))
    attn, _ = _softmax(logits, _attended(slot_mask, register_key.shape[1]), sink_logits)
    dattn = grad_output @ values.transpose(-1, -2)
    if grad_maps is not None:
        to_slots = grad_maps.to(dattn.dtype).transpose(1, 2)[:, None] / query.shape[1]
        dattn = dattn + F.pad(to_slots, (0, register_key.shape[1]))
    delta = (attn * dattn).sum(dim=-1, keepdim=True)
    dlogits = scale * attn * (dattn - delta)
    grads: list[Tensor | None] = [None] * len(TENSORS)
    if wanted & 0b000001:
        grads[0] = _rows_outside(dlogits @ keys, width)
    if wanted & 0b001010:
        grads[1], grads[3] = _split(dlogits.transpose(-1, -2) @ query, num_slots, width)
    if wanted & 0b010100:
        grads[2], grads[4] = _split(attn.transpose(-1, -2) @ grad_output, num_slots, width)
    if wanted & 0b100000 and sink_logits is not None:
        taken = (sink_logits.to(logsumexp.dtype)[:, None] - logsumexp).exp()
        grads[5] = -(taken * delta[..., 0]).sum(dim=(0, 2))
    return tuple(
        grad if grad is not None and wanted >> bit & 1 else query.new_empty(0, dtype=logsumexp.dtype if bit == 5 else width)
        for bit, grad in enumerate(grads)
    )


def _rows_outside(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, rows, D] as it is, in memory [B, rows, H, D], which joining the heads needs."""
    return x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)


def _split(joint: Tensor, num_slots: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients [B, H, K + R, D] -> those of the slots, and those of the registers summed over the batch."""
    slots, registers = joint[:, :, :num_slots], joint[:, :, num_slots:].sum(dim=0)
    return _rows_outside(slots, dtype), _rows_outside(registers[None], dtype)[0]


_library.OPERATORS.impl("register_attention_forward", _forward, "CompositeExplicitAutograd")
_library.OPERATORS.impl("register_attention_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("ocl::register_attention_forward")
def _(query, key, value, register_key, register_value, slot_mask, sink_logits, scale, with_maps):  # type: ignore[no-untyped-def]
    batch, heads, num_queries, width = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    return (
        query.new_empty(batch, num_queries, heads, width).transpose(1, 2),
        query.new_empty(batch, heads, num_queries, dtype=wide),
        query.new_empty(batch, key.shape[2] if with_maps else 0, num_queries, dtype=wide),
    )


@torch.library.register_fake("ocl::register_attention_backward")
def _(  # type: ignore[no-untyped-def]
    grad_output, grad_maps, query, key, value, register_key, register_value, slot_mask, sink_logits, logsumexp, scale, wanted
):
    batch, heads, _, width = query.shape

    def like(tensor, bit):  # type: ignore[no-untyped-def]
        if not wanted >> bit & 1:
            return query.new_empty(0)
        if tensor.ndim == 3:
            return query.new_empty(tensor.shape[1], heads, width).transpose(0, 1)
        return query.new_empty(batch, tensor.shape[2], heads, width).transpose(1, 2)

    tensors = (query, key, value, register_key, register_value)
    sinks = heads if wanted >> 5 & 1 and sink_logits is not None else 0
    return (*(like(tensor, bit) for bit, tensor in enumerate(tensors)), query.new_empty(sinks, dtype=logsumexp.dtype))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.with_maps = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_output: Tensor | None, _: Tensor | None, grad_maps: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, slot_mask, sink_logits, logsumexp = ctx.saved_tensors
    needed = (*ctx.needs_input_grad[:5], ctx.needs_input_grad[6])
    grad_maps = grad_maps if ctx.with_maps else None
    if (grad_output is None and grad_maps is None) or not any(needed):
        return (None,) * 9
    if grad_output is None:
        grad_output = torch.zeros_like(tensors[0])
    wanted = sum(1 << bit for bit, need in enumerate(needed) if need)
    grads = torch.ops.ocl.register_attention_backward(
        grad_output, grad_maps, *tensors, slot_mask, sink_logits, logsumexp, ctx.scale, wanted
    )
    found = [grad if need else None for grad, need in zip(grads, needed, strict=True)]
    sink = None if found[5] is None else found[5].to(sink_logits.dtype)
    return (*found[:5], None, sink, None, None)


_operator = _library.differentiable("register_attention_forward", _save, _differentiate)
_library.refuse_second_derivative("register_attention_backward")
