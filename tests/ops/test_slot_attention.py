"""The grouping step against its formula, element by element."""

import math

import pytest
import torch

from ocl.errors import ShapeError
from ocl.ops.slot_attention import slot_attention


@pytest.mark.parametrize("eps_on", ["weights", "denominator"])
def test_grouping_step_is_its_formula(eps_on):
    torch.manual_seed(0)
    heads, slots, tokens, width, eps = 2, 3, 4, 5, 1e-2
    query, key, value = torch.randn(1, heads, slots, width), torch.randn(1, heads, tokens, width), torch.randn(1, heads, tokens, 6)
    updates, attn = slot_attention(query, key, value, scale=0.7, eps=eps, eps_on=eps_on, return_attn=True)
    for n in range(tokens):
        logits = [[0.7 * float(key[0, h, n] @ query[0, h, k]) for k in range(slots)] for h in range(heads)]
        total = sum(math.exp(v) for row in logits for v in row)
        for h in range(heads):
            for k in range(slots):
                assert attn[0, h, k, n] == pytest.approx(math.exp(logits[h][k]) / total, rel=1e-5)
    weights = attn + eps if eps_on == "weights" else attn
    total = weights.sum(-1, keepdim=True) + (eps if eps_on == "denominator" else 0)
    torch.testing.assert_close(updates, torch.einsum("bhkn,bhne->bhke", weights / total, value))


@pytest.mark.parametrize("eps_on", ["weights", "denominator"])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_shared_tokens_have_the_gradients_of_two_tensors(eps_on, wanted):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=wanted[0])
    x = torch.randn(2, 2, 7, 5, generator=generator, dtype=torch.float64, requires_grad=wanted[1])

    def shared(query, x):
        return slot_attention(query, x, x, scale=0.7, eps=1e-3, eps_on=eps_on, return_attn=True)

    def apart(query, x):
        return slot_attention(query, x, x.clone(), scale=0.7, eps=1e-3, eps_on=eps_on, return_attn=True)

    for left, right in zip(shared(query, x), apart(query, x), strict=True):
        torch.testing.assert_close(left, right)
    assert torch.autograd.gradcheck(shared, (query, x))
    inputs = [tensor for tensor in (query, x) if tensor.requires_grad]
    found, expected = (
        torch.autograd.grad(sum(part.sin().sum() for part in form(query, x)), inputs) for form in (shared, apart)
    )
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_shared_tokens_compute_in_the_dtype_of_autocast():
    query, x = torch.randn(1, 1, 3, 8, requires_grad=True), torch.randn(1, 1, 9, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        updates, attn = slot_attention(query, x, x, return_attn=True)
    assert (updates.dtype, attn.dtype) == (torch.bfloat16, torch.float32)
    updates.float().square().sum().backward()
    exact = torch.autograd.grad(slot_attention(query, x, x).square().sum(), [query, x])
    for tensor, reference in zip((query, x), exact, strict=True):
        assert float((tensor.grad - reference).norm() / reference.norm()) < 0.03


def test_softmax_stays_in_float32_so_that_eps_survives_half_precision():
    query = torch.full((1, 1, 2, 4), 30.0, dtype=torch.bfloat16)
    query[:, :, 1] = -30
    key = torch.ones(1, 1, 3, 4, dtype=torch.bfloat16)
    updates, attn = slot_attention(query, key, key, scale=1.0, eps=1e-8, return_attn=True)
    assert attn.dtype == torch.float32
    torch.testing.assert_close(updates.float(), torch.ones(1, 1, 2, 4))  # the slot that nobody chose still averages


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 4), (2, 1, 5, 4), (2, 1, 5, 4)), "query of rank 4"),
        (((2, 1, 3, 4), (2, 1, 5, 6), (2, 1, 5, 4)), "equal B, H and D"),
        (((2, 1, 3, 4), (2, 1, 5, 4), (2, 1, 6, 4)), "equal B, H and N"),
    ],
)
def test_misuse_names_the_argument(shapes, message):
    with pytest.raises(ShapeError, match=message):
        slot_attention(*(torch.zeros(shape) for shape in shapes))
