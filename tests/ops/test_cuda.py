"""The CUDA kernels on a device: against float64, for the same bits every time, and no slower path taken unasked."""

import pytest
import torch

from ocl.ops import backend, register_attention, slot_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; run on a machine that has one"),
]
LIMIT = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}  # relative to float64 on the same rounded inputs
WIDTHS = [24, 32, 40, 64, 72, 80, 96, 128, 160]


def random(*shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).cuda()


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


def results(operator, made, **options):
    """Outputs and gradients of a weighted sum of them."""
    outputs = operator(*made.values(), **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((x.double() * torch.linspace(1, 2, x.numel(), device=x.device).view_as(x)).sum() for x in outputs)
    return [*outputs, *torch.autograd.grad(total, list(made.values()))]


def assert_close(found, expected, dtype):
    for left, right in zip(found, expected, strict=True):
        error = (left.double() - right).norm() / right.norm().clamp_min(1e-30)
        assert error < LIMIT[dtype] * 2


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
def test_results_have_the_same_bits_every_time_and_in_any_batch(dtype):
    for operator, make in ((register_attention, registers), (slot_attention, tokens)):
        made = make(dtype)
        first = results(operator, made)
        for _ in range(5):
            assert all(torch.equal(left, right) for left, right in zip(first, results(operator, made), strict=True))
        alone = {name: value[:1] if value.ndim == 4 else value for name, value in made.items()}
        assert torch.equal(operator(*alone.values()), first[0][:1])


def test_a_wide_head_and_many_keys_still_have_an_answer():
    made = registers(torch.float32, K=70, R=200, D=200, M=9)
    assert_close(results(register_attention, made), results(register_attention, widened(made)), torch.float32)
