"""Attention to an image's own keys is torch's, by whatever it is computed."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from ocl.ops import attention, backend

MODULE = import_module("ocl.ops.attention")  # the name in ocl.ops is the function
SIZES = [(2, 3, 7, 300, 40), (1, 2, 64, 64, 64), (2, 1, 1, 1, 8), (1, 1, 5, 9, 200), (0, 2, 4, 4, 8)]
LIMIT = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", ["auto", "sdpa", "reference"])
def test_it_is_torch_s_attention_with_its_gradients(size, dtype, name):
    batch, heads, queries, keys, width = size
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, rows, heads, width) for rows in (queries, keys, keys)]
    tensors = [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    with backend(name):
        found = attention(*tensors)
        expected = F.scaled_dot_product_attention(*exact)
        assert found.dtype == dtype and found.shape == expected.shape
        assert (found.double() - expected).norm() <= LIMIT[dtype] * expected.norm()
        weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        gradients = (torch.autograd.grad((out * weights).sum(), x) for out, x in ((found.double(), tensors), (expected, exact)))
        for left, right in zip(*gradients, strict=True):
            assert (left.double() - right).norm() <= 4 * LIMIT[dtype] * (right.norm() + 1)  # a gradient may be 0


def test_the_compiled_operator_runs_where_it_is_faster(monkeypatch):
    called = []
    monkeypatch.setattr(MODULE, "register_attention", lambda *x: called.append(x) or x[0])
    query = torch.zeros(1, 1, 4, 8)
    attention(query, query, query)
    assert bool(called) == (torch.float32 in MODULE._FASTER_HERE)
    called.clear()
    for name in ("sdpa", "reference", "xformers"):
        with backend(name):
            attention(query, query, query)
    attention(query.double(), query.double(), query.double())
    torch.func.grad(lambda x: attention(x, x, x).sum())(query)
    assert not called


def test_it_compiles_as_one_graph():
    query = torch.randn(1, 2, 6, 8)
    whole = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(query, query, query), attention(query, query, query))
