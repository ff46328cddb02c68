"""The grouping step against its formula, element by element, and the compiled one against float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocl.errors import ConfigError, ShapeError
from ocl.ops import _library, backend, slot_attention
from ocl.ops.slot_attention import _backward, _forward, _operator, reference

PATTERNS = {"all": "qkv", "query": "q", "key": "k", "value": "v", "query and key": "qk", "query and value": "qv"}
LIMIT = {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}  # relative to float64 on the same rounded inputs
needs_fused = pytest.mark.skipif(
    _library.LIBRARIES["cpu"].path is None, reason=f"no compiled operators: {_library.LIBRARIES['cpu'].missing}"
)


def inputs(dtype=torch.float64, wanted="", *, shared=False, seed=0, scale=1.0, B=2, H=2, K=3, N=7, D=5, E=6):
    """query [B, H, K, D], key [B, H, N, D], value [B, H, N, E], or the key itself where `shared`."""
    generator = torch.Generator().manual_seed(seed)

    def rows(name, *shape):
        x = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_(name in wanted)

    query, key = rows("q", B, H, K, D), rows("k", B, H, N, D)
    return query, key, key if shared else rows("v", B, H, N, E)


def leaves(tensors):
    unique = {id(x): x for x in tensors if x.requires_grad}
    return list(unique.values())


def ramps(outputs):
    """The gradients of outputs in the tests."""
    return [torch.linspace(1, 2, x.numel(), dtype=torch.float64).view_as(x) for x in outputs]


def gradients(tensors, outputs):
    total = sum((x.double() * ramp).sum() for x, ramp in zip(outputs, ramps(outputs), strict=True))
    return torch.autograd.grad(total, leaves(tensors))


@torch.no_grad()
def terms(query, key, value, grad_updates, grad_attn, *, scale, eps, eps_on):
    """What updates and the gradients of query, key, value are sums of, in absolute values: they may be much smaller."""
    _, attn = reference(query, key, value, scale=scale, eps=eps, eps_on=eps_on)
    weights = attn + eps if eps_on == "weights" else attn
    total = weights.sum(-1, keepdim=True) + (0 if eps_on == "weights" else eps)
    share = grad_updates.abs() / total
    updates = weights / total @ value.abs()
    grad_attn = share @ value.abs().mT + (share * updates).sum(-1, keepdim=True) + grad_attn.abs()
    logits = scale * attn * (grad_attn + (attn * grad_attn).sum((1, 2), keepdim=True))
    return updates, logits @ key.abs(), logits.mT @ query.abs(), weights.mT @ share


def error(found, exact):
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm().clamp_min(1e-30))


def widened(tensors):
    query, key, value = tensors
    query64, key64 = (x.detach().double().requires_grad_(x.requires_grad) for x in (query, key))
    return query64, key64, key64 if value is key else value.detach().double().requires_grad_(value.requires_grad)


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
    for tensor, gradient in zip((query, x), exact, strict=True):
        assert float((tensor.grad - gradient).norm() / gradient.norm()) < 0.03


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


@pytest.mark.parametrize("wrong", ["key", "value"])
def test_misuse_of_dtype_and_device_names_the_argument(wrong):
    made = {"query": torch.zeros(2, 1, 3, 4), "key": torch.zeros(2, 1, 5, 4), "value": torch.zeros(2, 1, 5, 4)}
    for changed, rule in (
        (made[wrong].long(), "of floating point"),
        (made[wrong].half(), "in the dtype of query"),
        (made[wrong].to("meta"), "on the device of query"),
    ):
        with pytest.raises(ShapeError, match=f"slot_attention expects {wrong} {rule}"):
            slot_attention(**{**made, wrong: changed})


def test_an_unknown_rule_for_eps_and_dtypes_without_an_implementation_are_refused():
    tensors = [torch.zeros(1, 1, rows, 4) for rows in (3, 5, 5)]
    with pytest.raises(ConfigError, match="eps_on is weights or denominator, got 'foo'"):
        slot_attention(*tensors, eps_on="foo")
    with pytest.raises(ShapeError, match=r"query of floating point \(float32.*got torch.float8"):
        slot_attention(*(x.to(torch.float8_e4m3fn) for x in tensors))


def test_no_slot_is_refused():
    with pytest.raises(ShapeError, match="at least one head, one slot"):
        slot_attention(torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 4))


def test_attn_is_returned_only_when_asked_for():
    tensors = inputs(torch.float32)
    updates, attn = slot_attention(*tensors, return_attn=True)
    torch.testing.assert_close(slot_attention(*tensors), updates)
    torch.testing.assert_close(attn.sum(dim=(1, 2)), torch.ones(2, 7))


@pytest.mark.parametrize("eps_on", ["weights", "denominator"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_explicit_formulas_have_the_gradients_of_the_plain_operator(pattern, shared, eps_on):
    """What the dispatcher runs without a library, against autograd through `reference`."""
    if shared and not set("qk") & set(PATTERNS[pattern]):
        pytest.skip("shared tokens are keys; there is no value to differentiate")
    tensors = inputs(wanted=PATTERNS[pattern], shared=shared)
    forward = reference(*tensors, scale=0.7, eps=1e-2, eps_on=eps_on)
    expected = gradients(tensors, forward)
    value = None if shared else tensors[2]
    updates, total, attn = _forward(*tensors[:2], value, 0.7, 1e-2, eps_on == "weights", True)
    torch.testing.assert_close(updates, forward[0])
    torch.testing.assert_close(attn, forward[1])
    weights = [torch.linspace(1, 2, x.numel(), dtype=torch.float64).view_as(x) for x in forward]
    wanted = sum(1 << bit for bit, x in enumerate(tensors) if x.requires_grad)
    found = _backward(*weights, *tensors[:2], value, updates, total, 0.7, 1e-2, eps_on == "weights", wanted)
    found = [x for x in found if x.numel()]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_in_float64(pattern, shared):
    tensors = inputs(wanted=PATTERNS[pattern], shared=shared)
    if not leaves(tensors):
        pytest.skip("shared tokens are keys; there is no value to differentiate")

    def run(*_):
        return slot_attention(*tensors, scale=0.7, eps=1e-3, return_attn=True)

    assert torch.autograd.gradcheck(run, leaves(tensors))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_the_operator_in_float64(pattern, shared, formulas):
    """The derivative that the dispatcher's operator was given, over the formulas that kernels replace."""
    tensors = inputs(wanted=PATTERNS[pattern], shared=shared)
    if not leaves(tensors):
        pytest.skip("shared tokens are keys; there is no value to differentiate")

    def run(*_):
        updates, _, attn = _operator(*tensors[:2], None if shared else tensors[2], 0.7, 1e-3, True, True)
        return updates, attn

    assert torch.autograd.gradcheck(run, leaves(tensors))
    assert formulas["slot_attention_forward"] > 0 and formulas["slot_attention_backward"] > 0


# The compiled operator ------------------------------------------------------------------------------------------------------------


@needs_fused
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fused_equals_float64_for_any_shape_stride_and_mode(data):
    draw = data.draw
    sizes = {
        "B": draw(st.integers(0, 3)), "H": draw(st.integers(1, 3)), "K": draw(st.integers(1, 24)), "N": draw(st.integers(0, 80)),
        "D": draw(st.sampled_from([1, 3, 8, 20, 64, 192])),
    }  # fmt: skip
    shared = draw(st.booleans())
    sizes["E"] = sizes["D"] if shared else draw(st.sampled_from([1, 7, 16, 64]))
    dtype = draw(st.sampled_from(list(LIMIT)))
    options = {"scale": 0.5, "eps": draw(st.sampled_from([1e-8, 1e-2]))}
    options["eps_on"] = draw(st.sampled_from(["weights", "denominator"]))
    tensors = inputs(dtype, "qkv", shared=shared, seed=draw(st.integers(0, 99)), **sizes)
    exact = widened(tensors)
    views, exact_views = tensors, exact
    layout = draw(st.sampled_from(["contiguous", "heads last", "expanded", "strided"]))
    if layout != "contiguous":
        changes = {
            "heads last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
            "expanded": lambda x: x[:1].expand(sizes["B"], -1, -1, -1) if sizes["B"] else x,
            "strided": lambda x: torch.stack([x, x], -1)[..., 0],  # the last dimension has stride 2
        }
        views, exact_views = ([*map(changes[layout], group)] for group in (tensors, exact))
        if shared:
            views[2], exact_views[2] = views[1], exact_views[1]
    with backend("fused"):
        found = slot_attention(*views, **options, return_attn=True)
    expected = reference(*exact_views, **options)
    of_updates, *of_gradients = terms(*exact_views, *ramps(expected), **options)
    for left, right, bound in zip(found, expected, (of_updates, expected[1]), strict=True):
        assert left.shape == right.shape and left.isfinite().all()
        assert (left.double() - right).norm() <= LIMIT[dtype] * bound.norm() + 1e-12
    if shared:
        of_gradients, exact_views = (of_gradients[0], of_gradients[1] + of_gradients[2]), exact_views[:2]
    bounds = torch.autograd.grad(exact_views, leaves(exact), of_gradients)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for one, other, bound in zip(gradients(tensors, found), gradients(exact, expected), bounds, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() <= 2 * LIMIT[dtype] * bound.norm() + smallest * other.numel() ** 0.5


@needs_fused
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_fused_gradient_patterns(pattern, shared):
    tensors = inputs(torch.float32, PATTERNS[pattern], shared=shared, K=7, N=100, D=64, E=64)
    if not leaves(tensors):
        pytest.skip("shared tokens are keys; there is no value to differentiate")
    exact = widened(tensors)
    with backend("fused"):
        found = slot_attention(*tensors, return_attn=True)
    expected = slot_attention(*exact, return_attn=True)
    for left, right in zip(gradients(tensors, found), gradients(exact, expected), strict=True):
        assert error(left, right) < 2 * LIMIT[torch.float32]


@needs_fused
@pytest.mark.parametrize("shared", [False, True])
def test_a_query_bias_that_all_slots_share_has_no_gradient(shared):
    """The softmax over slots does not see what is added to every slot's logit."""
    query, key, value = inputs(torch.float32, "", shared=shared, H=1, K=7, N=100, D=16, E=16)
    bias = torch.zeros(16, requires_grad=True)
    with backend("fused"):
        updates = slot_attention(query + bias, key, value)
    (gradient,) = torch.autograd.grad(updates.square().sum(), bias)
    assert float(gradient.abs().max()) < 1e-5


@needs_fused
@pytest.mark.parametrize("dtype", LIMIT)
def test_fused_survives_extreme_logits(dtype):
    tensors = inputs(dtype, "qkv", scale=100.0, N=50, D=64, E=64)
    with backend("fused"):
        updates, attn = slot_attention(*tensors, scale=1.0, return_attn=True)
    expected = slot_attention(*widened(tensors), scale=1.0, return_attn=True)
    assert float(expected[1].max()) > 0.99
    assert error(updates, expected[0]) < 2 * LIMIT[dtype] and error(attn, expected[1]) < 1e-4
    assert all(gradient.isfinite().all() for gradient in gradients(tensors, [updates, attn]))


@needs_fused
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", LIMIT)
def test_fused_results_do_not_depend_on_batch_run_or_threads(dtype, shared):
    whole = inputs(dtype, shared=shared, B=3, K=7, N=1500, D=16, E=16)

    def run(images):
        query, key = (x[images].clone().requires_grad_() for x in whole[:2])
        value = key if shared else whole[2][images].clone().requires_grad_()
        outputs = slot_attention(query, key, value, return_attn=True)
        total = outputs[0].float().square().sum() + outputs[1].square().sum()
        return [*outputs, *torch.autograd.grad(total, leaves((query, key, value)))]

    with backend("fused"):
        together, again = run(slice(0, 3)), run(slice(0, 3))
        before = torch.get_num_threads()
        torch.set_num_threads(3 - before if before < 3 else 1)
        try:
            threaded = run(slice(0, 3))
        finally:
            torch.set_num_threads(before)
        for left, right, other in zip(together, again, threaded, strict=True):
            assert torch.equal(left, right) and torch.equal(left, other)
        for image in range(3):
            alone = run(slice(image, image + 1))
            assert all(torch.equal(left[0], right[image]) for left, right in zip(alone, together, strict=True))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_operators_obey_the_dispatcher(pattern, shared):
    query, key, value = inputs(torch.float32, PATTERNS[pattern], shared=shared)
    value = None if shared else value
    operator, backward = torch.ops.ocl.slot_attention_forward.default, torch.ops.ocl.slot_attention_backward.default
    for with_attn in (False, True):
        torch.library.opcheck(operator, (query, key, value, 0.7, 1e-3, True, with_attn))
    still = [None if x is None else x.detach() for x in (query, key, value)]
    updates, total, attn = operator(*still, 0.7, 1e-3, True, True)
    wanted = sum(1 << "qkv".index(letter) for letter in PATTERNS[pattern] if letter != "v" or not shared)
    torch.library.opcheck(backward, (updates, attn, *still, updates, total, 0.7, 1e-3, True, wanted))


@pytest.mark.slow
def test_compiles_with_inductor():
    tensors = inputs(torch.float32, "qkv")
    torch._dynamo.reset()
    plain, traced = slot_attention(*tensors), torch.compile(slot_attention, fullgraph=True)(*tensors)
    torch.testing.assert_close(traced, plain)
    for left, right in zip(gradients(tensors, [traced]), gradients(tensors, [plain]), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_compiles_without_a_graph_break(pattern, shared):
    tensors = inputs(torch.float32, PATTERNS[pattern], shared=shared)
    if not leaves(tensors):
        pytest.skip("shared tokens are keys; there is no value to differentiate")

    def run(query, key, value):
        return slot_attention(query, key, key if shared else value, return_attn=True)

    torch._dynamo.reset()
    plain, traced = run(*tensors), torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
    for left, right in zip(plain, traced, strict=True):
        torch.testing.assert_close(left, right)
    for left, right in zip(gradients(tensors, plain), gradients(tensors, traced), strict=True):
        torch.testing.assert_close(left, right)


def test_fused_says_why_it_is_not_possible():
    with backend("fused"), pytest.raises(ConfigError, match=r'backend "fused", but .*; or use backend'):
        slot_attention(*inputs(torch.float64))


@needs_fused
def test_the_short_way_without_gradients_gives_the_same_bits():
    tensors = inputs(torch.float32, "qkv")
    with torch.no_grad():
        short = slot_attention(*tensors, return_attn=True)
    full = slot_attention(*tensors, return_attn=True)
    assert all(torch.equal(one, other) for one, other in zip(short, full, strict=True))
    assert full[0].requires_grad and not short[0].requires_grad


@needs_fused
def test_forward_mode_derivatives_are_refused_and_not_lost():
    query, key, value = inputs(torch.float32)
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError, match="jvp"), torch.enable_grad():
            slot_attention(dual, key, value)
