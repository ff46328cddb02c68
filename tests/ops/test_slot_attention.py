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
    updates, attn = slot_attention(query, key, value, scale=0.7, eps=eps, eps_on=eps_on)
    for n in range(tokens):
        logits = [[0.7 * float(key[0, h, n] @ query[0, h, k]) for k in range(slots)] for h in range(heads)]
        total = sum(math.exp(v) for row in logits for v in row)
        for h in range(heads):
            for k in range(slots):
                assert attn[0, h, k, n] == pytest.approx(math.exp(logits[h][k]) / total, rel=1e-5)
    weights = attn + eps if eps_on == "weights" else attn
    total = weights.sum(-1, keepdim=True) + (eps if eps_on == "denominator" else 0)
    torch.testing.assert_close(updates, torch.einsum("bhkn,bhne->bhke", weights / total, value))


def test_softmax_stays_in_float32_so_that_eps_survives_half_precision():
    query = torch.full((1, 1, 2, 4), 30.0, dtype=torch.bfloat16)
    query[:, :, 1] = -30
    key = torch.ones(1, 1, 3, 4, dtype=torch.bfloat16)
    updates, attn = slot_attention(query, key, key, scale=1.0, eps=1e-8)
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
