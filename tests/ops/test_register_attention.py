"""Register attention against its formula, its own laws, and itself through every backend, gradient pattern and compiler."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocl.errors import ConfigError, ShapeError
from ocl.ops import _library, backend, register_attention
from ocl.ops.register_attention import TENSORS, _backward, _forward, _operator, reference

SIZES = {"B": 2, "H": 3, "M": 5, "K": 4, "R": 6, "D": 8}
PATTERNS = {  # which inputs want a gradient
    "all": TENSORS, "query": ("query",), "slots": ("key", "value"), "slots and query": ("query", "key", "value"),
    "registers": ("register_key", "register_value"), "values": ("value", "register_value"), "sink": ("sink_logits",),
}  # fmt: skip
needs_fused = pytest.mark.skipif(
    _library.LIBRARIES["cpu"].path is None, reason=f"no compiled operators: {_library.LIBRARIES['cpu'].missing}"
)


def inputs(dtype=torch.float64, wanted=(), seed=0, scale=1.0, **sizes):
    """Named tensors in the memory layout of a decoder: [B, rows, H, D] seen as [B, H, rows, D]."""
    size = {**SIZES, **sizes}
    generator = torch.Generator().manual_seed(seed)

    def rows(name, *shape):
        x = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_(name in wanted)

    batch, heads, width = size["B"], size["H"], size["D"]
    made = {"query": rows("query", batch, size["M"], heads, width)}
    made |= {name: rows(name, batch, size["K"], heads, width) for name in ("key", "value")}
    made |= {name: rows(name, size["R"], heads, width) for name in ("register_key", "register_value")}
    made["sink_logits"] = rows("sink_logits", heads)
    return made


def call(made, *, sink=True, **options):
    views = [made[name].transpose(-3, -2) for name in TENSORS[:5]]
    return register_attention(*views, sink_logits=made["sink_logits"] if sink else None, **options)


def ramps(outputs):
    """The gradients of outputs in the tests."""
    return [torch.linspace(1, 2, x.numel(), dtype=torch.float64).view_as(x) for x in outputs]


def gradients(made, outputs):
    wanted = [name for name in TENSORS if made[name].requires_grad]
    total = sum((x.double() * ramp).sum() for x, ramp in zip(outputs, ramps(outputs), strict=True))
    return dict(zip(wanted, torch.autograd.grad(total, [made[name] for name in wanted]), strict=True))


@torch.no_grad()
def terms(query, key, value, register_key, register_value, sink, mask, grad_output, grad_maps):
    """What the output and the gradients are sums of, in absolute values: they may be small differences of these."""
    heads, slots, scale = query.shape[1], key.shape[2], query.shape[3] ** -0.5
    kept = torch.ones(len(query), slots, dtype=torch.bool) if mask is None else mask
    keys, values = (
        torch.cat([x, registers.expand(len(query), *registers.shape)], 2)
        for x, registers in ((key * kept[:, None, :, None], register_key), (value * kept[:, None, :, None], register_value))
    )
    logits = scale * query @ keys.mT
    logits[..., :slots] = logits[..., :slots].masked_fill(~kept[:, None, None, :], -math.inf)
    end = (torch.full((heads,), -math.inf) if sink is None else sink)[None, :, None, None].expand(*logits.shape[:3], 1)
    weights = torch.cat([logits, end], -1).softmax(-1).nan_to_num()
    weights, at_sink = weights[..., :-1], weights[..., -1:]
    grad_weights = grad_output.abs() @ values.abs().mT
    grad_weights[..., :slots] += grad_maps.abs().mT[:, None] / heads
    mean = (weights * grad_weights).sum(-1, keepdim=True)
    grad_logits = weights * (grad_weights + mean)
    grad_keys, grad_values = scale * grad_logits.mT @ query.abs(), weights.mT @ grad_output.abs()
    gradients = [scale * grad_logits @ keys.abs(), grad_keys[:, :, :slots], grad_values[:, :, :slots]]
    gradients += [grad_keys[:, :, slots:].sum(0), grad_values[:, :, slots:].sum(0)]
    return weights @ values.abs(), gradients if sink is None else [*gradients, (at_sink * mean).sum((0, 2, 3))]


def error(found, exact):
    found, exact = found.detach(), exact.detach()
    return float((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


MASK = torch.tensor([[True, False, True, True], [False, False, False, False]])


def test_output_and_maps_are_their_formula():
    made = inputs(torch.float32)
    output, maps = call(made, scale=0.7, slot_mask=MASK, return_maps=True)
    for b in range(2):
        for m in range(5):
            mass = [0.0] * 4
            for h in range(3):
                keys = [(made["key"][b, k, h], made["value"][b, k, h], k) for k in range(4) if MASK[b, k]]
                keys += [(made["register_key"][r, h], made["register_value"][r, h], None) for r in range(6)]
                weights = [math.exp(0.7 * float(made["query"][b, m, h] @ key)) for key, _, _ in keys]
                total = sum(weights) + math.exp(float(made["sink_logits"][h]))
                expected = sum(w / total * value for w, (_, value, _) in zip(weights, keys, strict=True))
                torch.testing.assert_close(output[b, h, m], expected)
                for w, (_, _, k) in zip(weights, keys, strict=True):
                    if k is not None:
                        mass[k] += w / total / 3
            torch.testing.assert_close(maps[b, :, m], torch.tensor(mass))


def test_registers_of_the_batch_equal_registers_repeated_for_each_image():
    made = inputs(torch.float32)
    query, key, value, register_key, register_value = (made[name].transpose(-3, -2) for name in TENSORS[:5])
    keys, values = (torch.cat([x, r.expand(2, 3, 6, 8)], 2) for x, r in ((key, register_key), (value, register_value)))
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
    torch.testing.assert_close(register_attention(query, key, value, register_key, register_value), expected)


def test_a_masked_slot_is_as_if_it_were_not_there():
    made = inputs(torch.float32)
    masked = call(made, slot_mask=torch.tensor([[True, True, False, True]] * 2), sink=False)
    kept = {name: x[:, [0, 1, 3]] if name in ("key", "value") else x for name, x in made.items()}
    torch.testing.assert_close(masked, call(kept, sink=False))


@pytest.mark.parametrize("junk", [1e4, math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["reference", "sdpa", "auto", "formulas"])
def test_a_masked_slot_may_hold_anything(name, dtype, junk, request):
    """By whatever implementation: nothing of it reaches an output or a gradient."""
    if name == "formulas":
        request.getfixturevalue("formulas")

    def run(fill):
        made = inputs(dtype, TENSORS[:5])
        with torch.no_grad():
            made["key"][:, 2], made["value"][:, 2] = fill, fill
        made["sink_logits"].requires_grad_(False)
        mask = torch.tensor([[True, True, False, True]] * 2)
        if name == "formulas":
            output = _operator(*(made[n].transpose(-3, -2) for n in TENSORS[:5]), mask, None, 0.4, False)[0]
        else:
            with backend(name):
                output = call(made, sink=False, slot_mask=mask)
        return [output, *gradients(made, [output]).values()]

    for found, expected in zip(run(junk), run(0.0), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["reference", "auto"])
def test_a_row_without_a_key_gives_zeros_and_zero_gradients(name):
    made = inputs(torch.float32, TENSORS, R=0)
    with backend(name):
        output, maps = call(made, sink=False, slot_mask=MASK, return_maps=True)
        assert not output[1].any() and not maps[1].any() and output[0].any()
        made["sink_logits"].requires_grad_(False)
        for gradient in gradients(made, [output, maps]).values():
            assert gradient.isfinite().all()


def test_slots_are_exchangeable_and_maps_follow_them():
    made, order = inputs(torch.float32), torch.tensor([2, 0, 3, 1])
    output, maps = call(made, return_maps=True)
    moved = {name: x[:, order] if name in ("key", "value") else x for name, x in made.items()}
    output_moved, maps_moved = call(moved, return_maps=True)
    torch.testing.assert_close(output_moved, output)
    torch.testing.assert_close(maps_moved, maps[:, order])


@needs_fused
def test_fused_output_lies_in_memory_as_the_next_layer_reads_it():
    assert call(inputs(torch.float32)).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_in_float64(pattern, masked):
    made = inputs(wanted=PATTERNS[pattern], M=3, K=4, R=2, D=3)
    names = [name for name in TENSORS if made[name].requires_grad]

    def run(*tensors):
        return call({**made, **dict(zip(names, tensors, strict=True))}, slot_mask=MASK if masked else None, return_maps=True)

    assert torch.autograd.gradcheck(run, [made[name] for name in names])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_operator_in_float64(pattern, masked, formulas):
    """The derivative that the dispatcher's operator was given, over the formulas that kernels replace."""
    made = inputs(wanted=PATTERNS[pattern], M=3, K=4, R=2, D=3)
    names = [name for name in TENSORS if made[name].requires_grad]

    def run(*tensors):
        given = {**made, **dict(zip(names, tensors, strict=True))}
        views = [given[name].transpose(-3, -2) for name in TENSORS[:5]]
        output, _, maps = _operator(*views, MASK if masked else None, given["sink_logits"], 0.4, True)
        return output, maps

    assert torch.autograd.gradcheck(run, [made[name] for name in names])
    assert formulas["register_attention_forward"] > 0 and formulas["register_attention_backward"] > 0


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("masked", [False, True])
def test_explicit_formulas_have_the_gradients_of_the_plain_operator(pattern, masked):
    """What the dispatcher runs without a library, against autograd through `reference`."""
    made = inputs(wanted=PATTERNS[pattern])
    tensors = [made[name].transpose(-3, -2) for name in TENSORS[:5]]
    mask, sink = MASK if masked else None, made["sink_logits"]
    forward = reference(*tensors, scale=0.4, slot_mask=mask, sink_logits=sink)
    expected = gradients(made, forward)
    output, logsumexp, maps = _forward(*tensors, mask, sink, 0.4, True)
    torch.testing.assert_close(output, forward[0])
    torch.testing.assert_close(maps, forward[1])
    weights = [torch.linspace(1, 2, x.numel(), dtype=torch.float64).view_as(x) for x in forward]
    found = _backward(weights[0], weights[1], *tensors, mask, sink, logsumexp, 0.4, sum(1 << TENSORS.index(n) for n in expected))
    for name, gradient in zip(TENSORS, found, strict=True):
        if name in expected:
            gradient = gradient.transpose(-3, -2) if name != "sink_logits" else gradient
            torch.testing.assert_close(gradient, expected[name])
        else:
            assert gradient.numel() == 0


# The compiled operator ------------------------------------------------------------------------------------------------------------

LIMIT = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 8e-4}  # relative to float64 on the same rounded inputs


@needs_fused
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", LIMIT)
def test_fused_gradients_are_those_of_float64(pattern, dtype):
    made = inputs(dtype, PATTERNS[pattern], M=33, D=40, K=7, R=20)
    exact = {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in made.items()}
    mask = torch.rand(2, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    with backend("fused"):
        found = call(made, slot_mask=mask, return_maps=True)
    expected = call(exact, slot_mask=mask, return_maps=True)
    for left, right in zip(found, expected, strict=True):
        assert error(left, right) < LIMIT[dtype]
    found, expected = gradients(made, found), gradients(exact, expected)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == dtype
        assert error(gradient, expected[name]) < LIMIT[dtype] * (4 if name == "sink_logits" else 2), name


@needs_fused
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fused_equals_float64_for_any_shape_stride_and_mask(data):
    draw = data.draw
    sizes = {
        "B": draw(st.integers(0, 3)), "H": draw(st.integers(1, 3)), "M": draw(st.integers(0, 40)), "K": draw(st.integers(0, 20)),
        "R": draw(st.integers(0, 160)), "D": draw(st.sampled_from([1, 3, 8, 20, 40, 64, 80, 160])),
    }  # fmt: skip
    if sizes["K"] + sizes["R"] == 0:
        sizes["K"] = 1
    dtype = draw(st.sampled_from(list(LIMIT)))
    made = inputs(dtype, TENSORS, seed=draw(st.integers(0, 99)), **sizes)
    tensors = [made[name].transpose(-3, -2) for name in TENSORS[:5]]
    layout = draw(st.sampled_from(["decoder", "contiguous", "expanded", "strided"]))
    if layout == "contiguous":
        tensors = [x.contiguous() for x in tensors]
    elif layout == "expanded":  # every image has the queries and slots of the first, and every head its registers, without a copy
        tensors[:3] = [x[:1].expand(sizes["B"], -1, -1, -1) if sizes["B"] else x for x in tensors[:3]]
        tensors[3:] = [x[:1].expand(sizes["H"], -1, -1) for x in tensors[3:]]
    elif layout == "strided":  # every second column of a wider tensor: the last dimension has stride 2
        tensors = [torch.stack([x, x], -1)[..., 0] for x in tensors]
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(sizes["B"], sizes["K"], generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))) > 0.4
    sink = made["sink_logits"] if draw(st.booleans()) else None
    with backend("fused"):
        output, maps = register_attention(*tensors, slot_mask=mask, sink_logits=sink, return_maps=True)
    wide = [x.double() for x in tensors]
    exact = reference(*wide, scale=sizes["D"] ** -0.5, slot_mask=mask, sink_logits=None if sink is None else sink.double())
    of_output, of_gradients = terms(*wide, sink, mask, *ramps(exact))
    for left, right, bound in zip((output, maps), exact, (of_output, exact[1]), strict=True):
        assert left.shape == right.shape and left.isfinite().all()
        assert (left.double() - right).norm() <= LIMIT[dtype] * bound.norm() + 1e-12
    names = [name for name in TENSORS if name != "sink_logits" or sink is not None]
    leaves = [made[name] for name in names]
    left, right = (
        torch.autograd.grad([x.double() for x in pair], leaves, ramps(pair), allow_unused=True) for pair in ((output, maps), exact)
    )
    bounds = torch.autograd.grad(wide if sink is None else [*wide, sink.double()], leaves, of_gradients, allow_unused=True)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for name, found, expected, bound in zip(names, left, right, bounds, strict=True):
        if expected is None or found is None:
            assert found is None or not found.any()
            continue
        limit = 2 * LIMIT[dtype] * bound.double().norm() + smallest * expected.numel() ** 0.5
        assert (found.double() - expected.double()).norm() <= limit, name


@needs_fused
@pytest.mark.parametrize("dtype", LIMIT)
def test_fused_survives_extreme_logits(dtype):
    made = inputs(dtype, TENSORS, scale=100.0, D=64)
    with backend("fused"):
        output, maps = call(made, scale=1.0, return_maps=True)
    exact = {name: x.detach().double().requires_grad_() for name, x in made.items()}
    expected = call(exact, scale=1.0, return_maps=True)
    assert float(expected[1].max()) > 0.3  # logits of 1e4 and more: one key takes a head's attention
    assert error(output, expected[0]) < 2 * LIMIT[dtype] and error(maps, expected[1]) < 1e-4
    assert all(gradient.isfinite().all() for gradient in gradients(made, [output, maps]).values())


@needs_fused
@pytest.mark.parametrize("dtype", LIMIT)
def test_fused_results_do_not_depend_on_the_batch_or_the_run(dtype):
    made = inputs(dtype, TENSORS, B=3, M=70, D=40, K=7, R=20)
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) > 0.3

    def run(rows):
        part = {name: x.detach()[rows] if x.ndim == 4 else x.detach() for name, x in made.items()}
        part = {name: x.requires_grad_() for name, x in part.items()}
        output, maps = call(part, slot_mask=mask[rows], return_maps=True)
        grads = torch.autograd.grad(output.float().square().sum() + maps.square().sum(), list(part.values()))
        return [output, maps, *grads]

    with backend("fused"):
        together, again = run(slice(0, 3)), run(slice(0, 3))
        assert all(torch.equal(left, right) for left, right in zip(together, again, strict=True))
        for image in range(3):
            alone = run(slice(image, image + 1))
            for left, right in zip(alone[:5], together[:5], strict=True):  # output, maps, gradients of query, key and value
                assert torch.equal(left[0], right[image])


@needs_fused
def test_fused_results_do_not_depend_on_the_number_of_threads():
    made = inputs(torch.float32, TENSORS, M=3000, D=40, K=7, R=20)
    found = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            outputs = call(made, return_maps=True)
            found.append([*outputs, *gradients(made, outputs).values()])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_operators_obey_the_dispatcher(pattern):
    made = inputs(torch.float32, PATTERNS[pattern])
    tensors = [made[name].transpose(-3, -2) for name in TENSORS[:5]]
    operator = torch.ops.ocl.register_attention_forward.default
    torch.library.opcheck(operator, (*tensors, MASK, made["sink_logits"], 0.4, True))
    torch.library.opcheck(operator, (*tensors, None, None, 0.4, False))
    still = [x.detach() for x in tensors]
    output, logsumexp, maps = operator(*still, MASK, made["sink_logits"].detach(), 0.4, True)
    wanted = sum(1 << TENSORS.index(name) for name in PATTERNS[pattern])
    backward = torch.ops.ocl.register_attention_backward.default
    torch.library.opcheck(backward, (output, maps, *still, MASK, made["sink_logits"].detach(), logsumexp, 0.4, wanted))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_compiles_without_a_graph_break(pattern):
    made = inputs(torch.float32, PATTERNS[pattern])
    names = [name for name in TENSORS if made[name].requires_grad]

    def run(*tensors):
        return call({**made, **dict(zip(names, tensors, strict=True))}, slot_mask=MASK, return_maps=True)

    tensors = [made[name] for name in names]
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    plain, traced = run(*tensors), compiled(*tensors)
    for left, right in zip(plain, traced, strict=True):
        torch.testing.assert_close(left, right)
    for left, right in zip(gradients(made, plain).values(), gradients(made, traced).values(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.slow
def test_compiles_with_inductor():
    made = inputs(torch.float32, TENSORS)
    torch._dynamo.reset()
    compiled = torch.compile(lambda m: call(m, slot_mask=MASK), fullgraph=True)
    plain, traced = call(made, slot_mask=MASK), compiled(made)
    torch.testing.assert_close(traced, plain)
    for left, right in zip(gradients(made, [traced]).values(), gradients(made, [plain]).values(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("name", ["reference", "sdpa", "auto"])
@pytest.mark.parametrize("masked", [False, True])
def test_backends_agree(name, masked):
    made = inputs(torch.float32, TENSORS[:5])
    mask = MASK if masked else None
    with backend(name):
        found = call(made, sink=False, slot_mask=mask)
    expected = reference(*(made[n].transpose(-3, -2) for n in TENSORS[:5]), scale=8**-0.5, slot_mask=mask)[0]
    torch.testing.assert_close(found, expected)


def test_sdpa_says_what_it_cannot_do():
    with backend("sdpa"), pytest.raises(ConfigError, match="no maps"):
        call(inputs(torch.float32), sink=False, return_maps=True)
    with backend("sdpa"), pytest.raises(ConfigError, match="no sinks"):
        call(inputs(torch.float32))


def test_fused_says_why_it_is_not_possible():
    with backend("fused"), pytest.raises(ConfigError, match=r'backend "fused", but .*; or use backend'):
        call(inputs(torch.float64))


@needs_fused
def test_a_second_derivative_is_refused():
    made = inputs(torch.float32, ("query",))
    with backend("fused"):
        (first,) = torch.autograd.grad(call(made).square().sum(), made["query"], create_graph=True)
        with pytest.raises(ConfigError, match="no derivative of its own"):
            first.sum().backward()


def test_transforms_of_torch_func_run_through_the_reference():
    query, *others = (inputs(torch.float32)[name].transpose(-3, -2) for name in TENSORS[:5])
    found = torch.func.grad(lambda x: register_attention(x, *others).square().sum())(query)
    query = query.clone().requires_grad_()
    (expected,) = torch.autograd.grad(register_attention(query, *others).square().sum(), query)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_chooses_the_dtype(dtype):
    made = inputs(torch.float32, TENSORS)
    with torch.autocast("cpu", dtype=dtype):
        output, maps = call(made, return_maps=True)
    assert (output.dtype, maps.dtype) == (dtype, torch.float32)
    assert error(output, call(made)) < 2e-2
    assert all(gradient.dtype == torch.float32 for gradient in gradients(made, [output]).values())


WRONG = {
    "query of rank 4": {"query": torch.zeros(2, 5, 8)},
    "register_key of rank 3": {"register_key": torch.zeros(2, 3, 6, 8)},
    "key of floating point": {"key": torch.zeros(2, 3, 4, 8, dtype=torch.int64)},
    "value in the dtype of query": {"value": torch.zeros(2, 3, 4, 8, dtype=torch.float64)},
    "equal B, H and D": {"key": torch.zeros(2, 2, 4, 8)},
    "key and value of one shape": {"value": torch.zeros(2, 3, 5, 8)},
    "register_key .* with H and D of query": {"register_key": torch.zeros(3, 6, 7)},
    "register_key and register_value of one shape": {"register_value": torch.zeros(3, 5, 8)},
    "slot_mask of bool": {"slot_mask": torch.ones(2, 4)},
    r"slot_mask of bool \[B, K\]": {"slot_mask": torch.ones(2, 5, dtype=torch.bool)},
    "sink_logits of floating point": {"sink_logits": torch.zeros(4)},
    "value on the device of query": {"value": torch.zeros(2, 3, 4, 8, device="meta")},
    "slot_mask on the device of query": {"slot_mask": torch.ones(2, 4, dtype=torch.bool, device="meta")},
    r"value of floating point \(float32": {"value": torch.zeros(2, 3, 4, 8).to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("rule", WRONG)
def test_misuse_names_the_argument_and_the_rule(rule):
    right = {
        "query": torch.zeros(2, 3, 5, 8), "key": torch.zeros(2, 3, 4, 8), "value": torch.zeros(2, 3, 4, 8),
        "register_key": torch.zeros(3, 6, 8), "register_value": torch.zeros(3, 6, 8),
    }  # fmt: skip
    with pytest.raises(ShapeError, match=f"register_attention expects .*{rule}"):
        register_attention(**{**right, **WRONG[rule]})


def test_no_key_at_all_is_refused():
    with pytest.raises(ShapeError, match=r"K \+ R > 0"):
        call(inputs(torch.float32, K=0, R=0))
