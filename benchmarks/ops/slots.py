"""Slot attention, one grouping step and the whole module: inputs, formula, and the ways to compute them that are compared.

bfloat16 of the module means float32 weights and tokens under autocast, as it is trained; of the step, bfloat16 tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from benchmarks.ops.cases import Case
from benchmarks.ops.provider import Forward, Inputs, Problem, Provider
from ocl import ops
from ocl.slots import SlotAttention
from ocl.types import Features

EPS = 1e-8
WEIGHT = "weight."  # names of the module's parameters among the inputs




def inputs(case: Case, device: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        drawn = torch.randn(*sizes, generator=generator, device=device, dtype=case.torch_dtype)
        return drawn.transpose(1, 2).requires_grad_(case.backward)

    B, H, N, D, K = (case[size] for size in "BHNDK")
    key = draw(B, N, H, D)
    return {"query": draw(B, K, H, D), "key": key, "value": key if case.shared else draw(B, N, H, D)}


def wanted(case: Case) -> tuple[str, ...]:
    names = ("query", "key") if case.shared else ("query", "key", "value")
    return names if case.backward else ()


def outputs(case: Case) -> tuple[str, ...]:
    return ("updates", "attn") if case.mode == "maps" else ("updates",)


def formula(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1, lines 5 to 8, as published code has it: logits [B, H, N, K], softmax over heads and slots in float32."""
    heads = query.shape[1:3]
    logits = key @ (query * query.shape[-1] ** -0.5).transpose(-1, -2)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    attn = wide.transpose(1, 2).flatten(2).softmax(dim=-1).unflatten(2, heads).transpose(1, 2)
    weights = attn + EPS
    weights = weights / weights.sum(dim=2, keepdim=True)
    return weights.transpose(-1, -2).to(value.dtype) @ value, attn.transpose(-1, -2)


def call_formula(compute: Callable[..., tuple[Tensor, Tensor]], case: Case) -> Forward:
    count = len(outputs(case))
    return lambda inputs: compute(inputs["query"], inputs["key"], inputs["value"])[:count]


def eager(case: Case) -> Forward:
    return call_formula(formula, case)


def compiled(case: Case) -> Forward:
    return call_formula(torch.compile(formula, dynamic=False, fullgraph=True), case)


def ours(case: Case) -> Forward:
    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        tensors = inputs["query"], inputs["key"], inputs["value"]
        if case.mode == "maps":
            return ops.slot_attention(*tensors, eps=EPS, return_attn=True)
        return (ops.slot_attention(*tensors, eps=EPS),)

    return forward


def reference(case: Case) -> Forward:
    return _slow(ours(case))


def _slow(forward: Forward) -> Forward:
    def slow(inputs: Inputs) -> tuple[Tensor, ...]:
        with ops.backend("reference"):
            return forward(inputs)

    return slow


def work(case: Case) -> tuple[float, float]:
    """Operations: 4 D per (token, slot) forward, 10 D backward. Bytes: tokens once forward, once and their gradient backward."""
    B, H, N, D, K = (case[size] for size in "BHNDK")
    tokens = B * H * N * D * case.torch_dtype.itemsize * (1 if case.shared else 2)
    attn = B * H * K * N * 4 if case.mode == "maps" else 0
    if not case.backward:
        return 4 * B * H * N * K * D, tokens
    return 14 * B * H * N * K * D, 3 * tokens + 2 * attn




def module_inputs(case: Case, device: str, seed: int) -> dict[str, Tensor]:
    """Tokens and first slots by seed; the weights are the same for all seeds, as in training."""
    generator = torch.Generator(device).manual_seed(seed)
    B, N, D, K = (case[size] for size in "BNDK")
    tokens = torch.randn(B, N, D, generator=generator, device=device).requires_grad_(case.backward)
    init = torch.randn(B, K, D, generator=generator, device=device).requires_grad_(case.backward)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = SlotAttention(D, D).to(device).requires_grad_(case.backward).state_dict(keep_vars=True)
    return {"tokens": tokens, "init": init, **{WEIGHT + name: weight for name, weight in weights.items()}}


def module_wanted(case: Case) -> tuple[str, ...]:
    weights = (WEIGHT + name for name, _ in SlotAttention(case["D"], case["D"]).named_parameters())
    return ("tokens", "init", *weights) if case.backward else ()


def module_outputs(case: Case) -> tuple[str, ...]:
    return ("slots",)


def published(module: SlotAttention, tokens: Tensor, slots: Tensor) -> Tensor:
    """The paper's text with a module's weights: project all tokens to keys and values, then iterate."""
    tokens = module.norm_features(tokens)
    key, value = module.to_k(tokens)[:, None], module.to_v(tokens)[:, None]
    for _ in range(module.num_iterations):
        updates, _ = formula(module.to_q(module.norm_slots(slots))[:, None], key, value)
        slots = module.gru(updates.flatten(0, 2), slots.flatten(0, 1).to(updates.dtype)).view_as(slots)
        slots = slots + module.mlp(module.norm_mlp(slots))
    return slots


def absorbed(module: SlotAttention, tokens: Tensor, slots: Tensor) -> Tensor:
    return module(Features(tokens, (tokens.shape[1], 1)), slots).vectors


def call_module(compute: Callable[[SlotAttention, Tensor, Tensor], Tensor], case: Case, *, autocast: bool = True) -> Forward:
    """A module is made once per set of weights; under autocast where the case is not float32."""
    made: dict[int, SlotAttention] = {}

    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        if id(inputs) not in made:
            made[id(inputs)] = _with_weights(case, inputs)
        narrow = autocast and case.dtype != "float32"
        with torch.autocast(inputs["tokens"].device.type, case.torch_dtype) if narrow else nullcontext():
            return (compute(made[id(inputs)], inputs["tokens"], inputs["init"]),)

    return forward


def _with_weights(case: Case, inputs: Inputs) -> SlotAttention:
    """A module that computes with the very tensors among the inputs."""
    with torch.device("meta"):
        module = SlotAttention(case["D"], case["D"])
    for name, _ in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        weight = inputs[WEIGHT + name]
        setattr(module.get_submodule(owner), leaf, weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight))
    return module


def module_eager(case: Case) -> Forward:
    return call_module(published, case)


def module_compiled(case: Case) -> Forward:
    return call_module(torch.compile(published, dynamic=False, fullgraph=True), case)


def module_ours(case: Case) -> Forward:
    return call_module(absorbed, case)


def module_absorbed(case: Case) -> Forward:
    return _slow(module_ours(case))


def module_reference(case: Case) -> Forward:
    return call_module(published, case, autocast=False)


PROBLEM = Problem(
    providers=(
        Provider("eager", eager),
        Provider("compile", compiled, compiled=True),
        Provider("reference", reference, "shown"),
        Provider("ours", ours, "ours"),
    ),
    inputs=inputs, wanted=wanted, outputs=outputs, reference=eager, work=work,
)  # fmt: skip
MODULE = Problem(
    providers=(
        Provider("eager", module_eager),
        Provider("compile", module_compiled, compiled=True),
        Provider("absorbed", module_absorbed, "shown"),
        Provider("ours", module_ours, "ours"),
    ),
    inputs=module_inputs, wanted=module_wanted, outputs=module_outputs, reference=module_reference,
)  # fmt: skip
