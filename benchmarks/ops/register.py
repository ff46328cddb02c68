"""Register attention and the projection layer around it: inputs, formula, and the ways to compute it that are compared.

Query, key and value lie in memory as [B, M, H, D], as projections of a U-Net or a transformer produce them. Baselines join the
registers to the keys of each image; where slots are left out they get the mask that published CODA training passes, -10000
added to a logit, made once outside of the timed part as a U-Net does for all of its layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.ops.cases import Case
from benchmarks.ops.provider import Forward, Inputs, Problem, Provider, Unavailable
from ocl import ops

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]  # query, joined key, joined value, bias -> output

NAMES = ("query", "key", "value", "register_key", "register_value")
MASKED_LOGIT = -10000.0
DROPPED = 0.1  # CODA's cfg_dropping_rate




def inputs(case: Case, device: str, seed: int) -> dict[str, Tensor]:
    draw = _Draw(case, device, seed)
    B, H, M, D, K, R = (case[size] for size in "BHMDKR")
    made = {
        "query": draw(B, M, H, D).transpose(1, 2),
        "key": draw(B, K, H, D).transpose(1, 2),
        "value": draw(B, K, H, D).transpose(1, 2),
        "register_key": draw(R, H, D).transpose(0, 1),
        "register_value": draw(R, H, D).transpose(0, 1),
    }
    made = {name: tensor.requires_grad_(name in wanted(case)) for name, tensor in made.items()}
    return {**made, **_mask(case, device)}


def layer_inputs(case: Case, device: str, seed: int) -> dict[str, Tensor]:
    """Slots and registers of width C before their projections; `context` is what an unchanged U-Net is given, `cached_*` what
    a layer may keep when registers and projections are frozen."""
    draw = _Draw(case, device, seed)
    B, H, M, D, K, R, C = (case[size] for size in "BHMDKRC")
    made = {
        "query": draw(B, M, H, D).transpose(1, 2), "slots": draw(B, K, C), "registers": draw(R, C),
        "to_k": draw(H * D, C) * C**-0.5, "to_v": draw(H * D, C) * C**-0.5,
    }  # fmt: skip
    made["context"] = torch.cat([made["slots"], made["registers"].expand(B, -1, -1)], dim=1)
    made["cached_key"] = _heads(F.linear(made["registers"], made["to_k"]), H)
    made["cached_value"] = _heads(F.linear(made["registers"], made["to_v"]), H)
    return {**made, **_mask(case, device)}


class _Draw:
    """Normal numbers of a case's dtype, other ones for each seed."""

    def __init__(self, case: Case, device: str, seed: int) -> None:
        self.device, self.dtype = device, case.torch_dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=self.generator, device=self.device, dtype=self.dtype)


def _mask(case: Case, device: str) -> dict[str, Tensor]:
    """Every tenth image, and at least one of several, has its slots left out; `bias` says the same to the baselines."""
    if not case.mask:
        return {}
    B, H, K, R = (case[size] for size in "BHKR")
    slot_mask = torch.ones(B, K, dtype=torch.bool, device=device)
    if B > 1:
        slot_mask[-max(1, round(DROPPED * B)) :] = False
    attended = F.pad(slot_mask, (0, R), value=True)
    bias = torch.zeros(B, 1, 1, K + R, device=device, dtype=case.torch_dtype).masked_fill_(~attended[:, None, None], MASKED_LOGIT)
    return {"slot_mask": slot_mask, "bias": bias.expand(B, H, 1, K + R)}


def _heads(x: Tensor, heads: int) -> Tensor:
    """[..., L, H * D] -> [..., H, L, D]"""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def wanted(case: Case) -> tuple[str, ...]:
    if not case.backward:
        return ()
    return NAMES if case.registers_learn else NAMES[:3]


def outputs(case: Case) -> tuple[str, ...]:
    return ("output", "maps") if case.mode == "maps" else ("output",)




def joined(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Keys and values of slots and registers, [B, H, K + R, D]."""
    key, value = inputs["key"], inputs["value"]
    size = (len(key), -1, -1, -1)
    return (
        torch.cat([key, inputs["register_key"].expand(size)], dim=2),
        torch.cat([value, inputs["register_value"].expand(size)], dim=2),
    )


def formula(
    query: Tensor, key: Tensor, value: Tensor, register_key: Tensor, register_value: Tensor, bias: Tensor | None, with_maps: bool
) -> tuple[Tensor, ...]:
    """Attention written down: join, multiply, softmax, multiply; the maps are the slots' columns, averaged over heads."""
    keys, values = joined({"key": key, "value": value, "register_key": register_key, "register_value": register_value})
    logits = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    attn = (logits if bias is None else logits + bias).softmax(dim=-1)
    output = attn @ values
    if not with_maps:
        return (output,)
    return output, attn[..., : key.shape[2]].to(torch.promote_types(attn.dtype, torch.float32)).mean(dim=1).transpose(1, 2)


def call_formula(compute: Callable[..., tuple[Tensor, ...]], case: Case) -> Forward:
    with_maps = case.mode == "maps"
    return lambda inputs: compute(*(inputs[name] for name in NAMES), inputs.get("bias"), with_maps)


def layer_reference(case: Case) -> Forward:
    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        made = {"query": inputs["query"]}
        for name, source in (("", "slots"), ("register_", "registers")):
            made[f"{name}key"] = _heads(F.linear(inputs[source], inputs["to_k"]), case["H"])
            made[f"{name}value"] = _heads(F.linear(inputs[source], inputs["to_v"]), case["H"])
        return call_formula(formula, case)({**made, "bias": inputs["bias"]} if case.mask else made)

    return forward




def eager(case: Case) -> Forward:
    return call_formula(formula, case)


def compiled(case: Case) -> Forward:
    return call_formula(torch.compile(formula, dynamic=False, fullgraph=True), case)


def attention(attend: Attend, case: Case) -> Forward:
    """Register attention through an attention on joined keys. Maps cost a second pass, over values that are one-hot."""

    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        key, value = joined(inputs)
        output = attend(inputs["query"], key, value, inputs.get("bias"))
        if case.mode != "maps":
            return (output,)
        one_hot = torch.eye(key.shape[2], case["D"], dtype=key.dtype, device=key.device).expand_as(key)
        columns = attend(inputs["query"], key, one_hot, inputs.get("bias"))[..., : case["K"]]
        return output, columns.float().mean(dim=1).transpose(1, 2)

    if case.mode == "maps" and case["D"] < case["K"]:
        raise Unavailable("maps through one-hot values need D >= K")
    return forward


def _sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def sdpa(case: Case) -> Forward:
    return attention(_sdpa, case)


def sdpa_joined(case: Case) -> Forward:
    """SDPA as a layer calls it that has projected the registers again for each image: its keys are joined beforehand."""
    if case.backward:
        raise Unavailable("forward only")
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        if id(inputs) not in made:
            made[id(inputs)] = joined(inputs)
        return (_sdpa(inputs["query"], *made[id(inputs)], inputs.get("bias")),)

    return forward


def forced(backend: SDPBackend) -> Callable[[Case], Forward]:
    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        with sdpa_kernel(backend):
            return _sdpa(query, key, value, bias)

    return lambda case: attention(attend, case)


def flex(case: Case) -> Forward:
    from torch.nn.attention.flex_attention import flex_attention

    run = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return run(query, key, value)
        of_image = bias[:, 0, 0]
        return run(query, key, value, score_mod=lambda score, b, h, m, l: score + of_image[b, l])  # noqa: E741

    return attention(attend, case)


def xformers(case: Case) -> Forward:
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        raise Unavailable("xformers is not installed") from None

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:  # rows of a bias must start at multiples of 8 elements
            wide = F.pad(bias, (0, -bias.shape[-1] % 8))
            bias = wide.expand(-1, -1, query.shape[2], -1)[..., : bias.shape[-1]]
        by_row = (x.transpose(1, 2) for x in (query, key, value))
        return memory_efficient_attention(*by_row, attn_bias=bias).transpose(1, 2)

    return attention(attend, case)




def ours(case: Case) -> Forward:
    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        tensors, slot_mask = [inputs[name] for name in NAMES], inputs.get("slot_mask")
        if case.mode == "maps":
            return ops.register_attention(*tensors, slot_mask=slot_mask, return_maps=True)
        return (ops.register_attention(*tensors, slot_mask=slot_mask),)

    return forward


def reference(case: Case) -> Forward:
    forward = ours(case)

    def slow(inputs: Inputs) -> tuple[Tensor, ...]:
        with ops.backend("reference"):
            return forward(inputs)

    return slow




def layer_sdpa(case: Case) -> Forward:
    """What diffusers does: project [slots; registers] of each image, then SDPA with the mask."""

    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        key, value = (_heads(F.linear(inputs["context"], inputs[weight]), case["H"]) for weight in ("to_k", "to_v"))
        return (_sdpa(inputs["query"], key, value, inputs.get("bias")),)

    return forward


def layer_sdpa_once(case: Case) -> Forward:
    """Registers projected once for the batch, then joined for SDPA: shows what the kernel adds to that."""
    forward = sdpa(case)
    return lambda inputs: forward(_projected(case, inputs, cached=False))


def layer_ours(case: Case) -> Forward:
    forward = ours(case)
    return lambda inputs: forward(_projected(case, inputs, cached=False))


def layer_ours_cached(case: Case) -> Forward:
    forward = ours(case)
    return lambda inputs: forward(_projected(case, inputs, cached=True))


def _projected(case: Case, inputs: Inputs, *, cached: bool) -> Inputs:
    heads, weights = case["H"], {"key": inputs["to_k"], "value": inputs["to_v"]}
    made = {name: _heads(F.linear(inputs["slots"], weight), heads) for name, weight in weights.items()}
    if cached:
        registers = {f"register_{name}": inputs[f"cached_{name}"] for name in weights}
    else:
        registers = {f"register_{name}": _heads(F.linear(inputs["registers"], weight), heads) for name, weight in weights.items()}
    return {**inputs, **made, **registers}




def work(case: Case) -> tuple[float, float]:
    """Operations: 4 D per (query, key) forward, 10 D backward (scores again, dP, dV, dK, dQ; dV and dK of the slots only where
    registers are frozen). Bytes: query and output forward, query, its gradient and the output's backward, keys once each."""
    B, H, M, D, K, R = (case[size] for size in "BHMDKR")
    rows, keys, size = B * H * M, K + R, case.torch_dtype.itemsize
    learned = keys if case.registers_learn else K
    flops = {"forward": 4 * rows * keys * D, "backward": rows * D * (6 * keys + 4 * learned)}
    small = 2 * (B * K + R) * H * D * size
    moved = {"forward": 2 * rows * D * size + small, "backward": 3 * rows * D * size + 2 * small}
    maps = 2 * B * K * M * 4 if case.mode == "maps" else 0
    if case.mode == "forward":
        return flops["forward"], moved["forward"]
    if case.backward_alone:
        return flops["backward"], moved["backward"]
    return sum(flops.values()), sum(moved.values()) + maps


PROBLEM = Problem(
    providers=(
        Provider("eager", eager),
        Provider("compile", compiled, compiled=True),
        Provider("sdpa", sdpa),
        Provider("sdpa-math", forced(SDPBackend.MATH)),
        Provider("sdpa-flash", forced(SDPBackend.FLASH_ATTENTION)),
        Provider("sdpa-efficient", forced(SDPBackend.EFFICIENT_ATTENTION)),
        Provider("sdpa-cudnn", forced(SDPBackend.CUDNN_ATTENTION)),
        Provider("sdpa-joined", sdpa_joined, "shown"),
        Provider("flex", flex, compiled=True),
        Provider("xformers", xformers),
        Provider("reference", reference, "shown"),
        Provider("ours", ours, "ours"),
    ),
    inputs=inputs, wanted=wanted, outputs=outputs, reference=eager, work=work,
)  # fmt: skip
LAYER = Problem(
    providers=(
        Provider("sdpa", layer_sdpa),
        Provider("sdpa-once", layer_sdpa_once, "shown"),
        Provider("ours", layer_ours, "ours"),
        Provider("ours-cached", layer_ours_cached, "ours"),
    ),
    inputs=layer_inputs, wanted=lambda case: (), outputs=outputs, reference=layer_reference,
)  # fmt: skip
