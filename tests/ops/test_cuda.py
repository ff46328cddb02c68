"""The CUDA kernels on a device: against float64, for the same bits every time, and no slower path taken unasked."""

import pytest
import torch

from ocl.ops import backend, register_attention, slot_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; run on a machine that has one"),
]
LIMIT = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}  # relative to float64 on the same rounded inputs
DEVICE = "cuda"
WIDTHS = [24, 32, 40, 64, 72, 80, 96, 128, 160]


def random(*shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def registers(dtype, *, B=2, H=3, M=200, K=7, R=77, D=40):
    shapes = [(B, H, M, D), (B, H, K, D), (B, H, K, D), (H, R, D), (H, R, D)]
    names = ("query", "key", "value", "register_key", "register_value")
    numbered = enumerate(zip(names, shapes, strict=True))
    return {name: random(*shape, dtype=dtype, seed=i).requires_grad_() for i, (name, shape) in numbered}


def tokens(dtype, *, B=2, H=1, K=7, N=300, D=64):
    rows = {"query": K, "key": N, "value": N}
    return {name: random(B, H, rows[name], D, dtype=dtype, seed=i).requires_grad_() for i, name in enumerate(rows)}


def widened(made):
    return {name: value.detach().double().requires_grad_() for name, value in made.items()}


def results(operator, made, wanted=None, **options):
    """Outputs, and gradients of a weighted sum of them for the named tensors, or all."""
    outputs = operator(*made.values(), **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((x.double() * torch.linspace(1, 2, x.numel(), device=x.device).view_as(x)).sum() for x in outputs)
    return [*outputs, *torch.autograd.grad(total, [made[name] for name in wanted or made])]


def with_sinks(*tensors, **options):
    """register_attention with the sink logits as its last tensor."""
    return register_attention(*tensors[:-1], sink_logits=tensors[-1], **options)


def assert_close(found, expected, dtype):
    for left, right in zip(found, expected, strict=True):
        # a small gradient is a difference of larger numbers: each element may add a little to the norm it is measured by
        assert (left.double() - right).norm() <= LIMIT[dtype] * 2 * (right.norm() + 0.1 * right.numel() ** 0.5)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("masked", [False, True])
def test_register_attention_is_that_of_float64(dtype, width, masked):
    made = registers(dtype, D=width)
    mask = random(2, 7, dtype=torch.float32, seed=9) > 0 if masked else None
    with backend("fused"):
        found = results(register_attention, made, slot_mask=mask, return_maps=True)
    with backend("reference"):
        assert_close(found, results(register_attention, widened(made), slot_mask=mask, return_maps=True), dtype)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("sizes", [{}, {"D": 768, "N": 1024}, {"K": 24, "D": 192}, {"H": 4, "D": 32}, {"N": 1}])
@pytest.mark.parametrize("attn", [False, True])
def test_slot_attention_is_that_of_float64(dtype, sizes, attn):
    made = tokens(dtype, **sizes)
    with backend("fused"):
        found = results(slot_attention, made, return_attn=attn)
    with backend("reference"):
        assert_close(found, results(slot_attention, widened(made), return_attn=attn), dtype)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("wanted", [["query"], ["key", "value"], ["register_key"], ["register_value"], ["sink_logits"], None])
def test_gradients_for_what_needs_them_with_sinks(dtype, wanted):
    made = {**registers(dtype), "sink_logits": random(3, dtype=dtype, seed=7).requires_grad_()}
    for name, value in made.items():
        value.requires_grad_(wanted is None or name in wanted)
    exact = {name: value.detach().double().requires_grad_(value.requires_grad) for name, value in made.items()}
    with backend("fused"):
        found = results(with_sinks, made, wanted, return_maps=True)
    with backend("reference"):
        assert_close(found, results(with_sinks, exact, wanted, return_maps=True), dtype)


LAYOUTS = {
    "rows outside": lambda x: x.transpose(-3, -2).contiguous().transpose(-3, -2),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("operator", "make"), [(register_attention, registers), (slot_attention, tokens)])
def test_any_strides(operator, make, layout):
    made, change = make(torch.float32), LAYOUTS[layout]

    def call(*tensors):
        return operator(*map(change, tensors))

    with backend("fused"):
        found = results(call, made)
    with backend("reference"):
        assert_close(found, results(call, widened(made)), torch.float32)


@pytest.mark.parametrize("sizes", [{"B": 0}, {"M": 0}, {"K": 0}, {"R": 0}])
def test_sizes_of_zero(sizes):
    made = registers(torch.bfloat16, **sizes)
    with backend("fused"):
        found = results(register_attention, made)
    assert all(x.isfinite().all() for x in found) and found[0].shape == made["query"].shape


@pytest.mark.parametrize("dtype", LIMIT)
def test_logits_of_ten_thousand_stay_finite(dtype):
    for operator, made in ((register_attention, registers(dtype)), (slot_attention, tokens(dtype))):
        large = {name: (100 * value.detach()).requires_grad_() for name, value in made.items()}
        with backend("fused"):
            assert all(x.isfinite().all() for x in results(operator, large, scale=1.0))


def test_a_masked_slot_may_hold_anything():
    made = registers(torch.float32)
    mask = torch.tensor([[True] * 6 + [False]] * 2, device=DEVICE)
    expected = results(register_attention, made, slot_mask=mask)
    with torch.no_grad():
        made["key"][:, :, 6], made["value"][:, :, 6] = torch.nan, torch.nan
    found = results(register_attention, made, slot_mask=mask)
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))


def test_the_operators_obey_the_dispatcher():
    made = [value.detach() for value in registers(torch.float32).values()]
    torch.library.opcheck(torch.ops.ocl.register_attention_forward.default, (*made, None, None, 0.2, True))
    step = [value.detach() for value in tokens(torch.float32).values()]
    torch.library.opcheck(torch.ops.ocl.slot_attention_forward.default, (*step, 0.2, 1e-8, True, True))


@pytest.mark.parametrize(("operator", "make"), [(register_attention, registers), (slot_attention, tokens)])
def test_they_compile_without_a_graph_break(operator, make):
    made = make(torch.bfloat16)
    torch._dynamo.reset()
    traced = results(torch.compile(operator, fullgraph=True), made)
    for left, right in zip(traced, results(operator, made), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize(("operator", "make"), [(register_attention, registers), (slot_attention, tokens)])
def test_results_have_the_same_bits_every_time_and_in_any_batch(operator, make, dtype):
    def run(made):
        output = operator(*made.values())
        return [output, *torch.autograd.grad(output.float().square().sum(), list(made.values()))]

    made = make(dtype)
    first = run(made)
    for _ in range(5):
        assert all(torch.equal(left, right) for left, right in zip(first, run(made), strict=True))
    alone = run({name: (x[:1] if x.ndim == 4 else x).detach().requires_grad_() for name, x in made.items()})
    for one, many in zip(alone[:4], first[:4], strict=True):  # output, and gradients of what belongs to an image
        assert torch.equal(one[0], many[0])


def test_a_wide_head_and_many_keys_still_have_an_answer():
    made = registers(torch.float32, K=70, R=200, D=200, M=9)
    assert_close(results(register_attention, made), results(register_attention, widened(made)), torch.float32)
