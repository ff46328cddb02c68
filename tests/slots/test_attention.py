"""Slot Attention: the exact algebra, the paper's algorithm written out, and what each variant changes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ocl.errors import ConfigError, ShapeError
from ocl.slots import GaussianInit, LearnedInit, SlotAttention
from ocl.types import Features

FEATURE_DIM, SLOT_DIM, GRID, K, B = 10, 8, (3, 4), 5, 3


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(B, GRID[0] * GRID[1], FEATURE_DIM, generator=generator, dtype=torch.float64)
    return Features(tokens, GRID), torch.randn(B, K, SLOT_DIM, generator=generator, dtype=torch.float64)


def module(**options):
    torch.manual_seed(1)
    return SlotAttention(FEATURE_DIM, SLOT_DIM, **options).double()


VARIANTS = [
    dict(num_heads=heads, eps_on=eps_on, position=position, input_mlp=position, out_dim=out_dim, gradient=gradient)
    for heads, eps_on, position, out_dim, gradient in itertools.product(
        (1, 2), ("weights", "denominator"), (False, True), (None, 6), ("full", "bilevel", "implicit")
    )
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_absorbed_form_equals_plain_form_in_outputs_and_all_gradients(options):
    features, init = example()
    results = []
    for form in ("plain", "absorbed"):
        attention = module(form=form, eps=1e-3, **options)
        tokens = features.tokens.clone().requires_grad_()
        start = init.clone().requires_grad_()
        slots = attention(Features(tokens, GRID), start)
        loss = slots.vectors.sin().sum() + slots.attn.square().sum()
        wanted = [tokens, start, *attention.parameters()]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append((slots.vectors, slots.attn, *gradients))
    for plain, absorbed in zip(*results, strict=True):
        assert (plain is None) == (absorbed is None)
        if plain is not None:
            torch.testing.assert_close(absorbed, plain, rtol=1e-10, atol=1e-12)


def test_one_head_is_algorithm_1_of_the_paper():
    features, slots = example()
    attention = module(eps=1e-8)
    inputs = attention.norm_features(features.tokens)
    k, v = attention.to_k(inputs), attention.to_v(inputs)
    for _ in range(3):
        previous = slots
        slots = attention.norm_slots(slots)
        attn = F.softmax(SLOT_DIM**-0.5 * k @ attention.to_q(slots).transpose(1, 2), dim=-1)
        weights = (attn + 1e-8) / (attn + 1e-8).sum(dim=1, keepdim=True)
        updates = weights.transpose(1, 2) @ v
        slots = attention.gru(updates.reshape(-1, SLOT_DIM), previous.reshape(-1, SLOT_DIM)).view(B, K, SLOT_DIM)
        slots = slots + attention.mlp(attention.norm_mlp(slots))
    got = attention(features, example()[1])
    torch.testing.assert_close(got.vectors, slots)
    torch.testing.assert_close(got.attn, attn.transpose(1, 2))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_every_token_gives_one_unit_of_attention_to_the_slots(heads):
    slots = module(num_heads=heads)(*example())
    torch.testing.assert_close(slots.attn.sum(dim=1), torch.ones(B, 12, dtype=torch.float64))


def test_head_scale_differs_from_slot_scale_only_with_several_heads():
    one = [module(num_heads=1, scale=scale)(*example()).vectors for scale in ("slot", "head")]
    two = [module(num_heads=2, scale=scale)(*example()).vectors for scale in ("slot", "head")]
    assert torch.equal(*one)
    assert not torch.allclose(*two)


def test_normalised_gru_state_forgets_the_length_of_a_slot():
    features, init = example()
    long = init * 7 + 2  # LayerNorm undoes a common scale and shift
    raw = [module(num_iterations=1, gru_state="raw")(features, start).vectors for start in (init, long)]
    normalised = [module(num_iterations=1, gru_state="normalised")(features, start).vectors for start in (init, long)]
    assert not torch.allclose(*raw)
    torch.testing.assert_close(*normalised, rtol=1e-4, atol=1e-4)


def test_bilevel_gradient_is_the_last_iteration_plus_straight_through():
    features, init = example()
    start = init.clone().requires_grad_()
    attention = module(gradient="bilevel", num_iterations=3)
    attention(features, start).vectors.sum().backward()
    got = {name: p.grad.clone() for name, p in attention.named_parameters() if p.grad is not None}
    with torch.no_grad():
        halfway = module(gradient="full", num_iterations=2)(features, init).vectors
    single = module(gradient="full", num_iterations=1)
    again = halfway.requires_grad_()
    single(features, again).vectors.sum().backward()
    torch.testing.assert_close(start.grad, again.grad)
    for name, parameter in single.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


def test_implicit_gradient_is_one_step_at_the_fixed_point_and_leaves_the_start_alone():
    features, init = example()
    start = init.clone().requires_grad_()
    attention = module(gradient="implicit", num_iterations=3)
    attention(features, start).vectors.sum().backward()
    assert start.grad is None
    with torch.no_grad():
        fixed = module(num_iterations=3)(features, init).vectors
    single = module(num_iterations=1)
    single(features, fixed).vectors.sum().backward()
    for (name, got), expected in zip(attention.named_parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, msg=name)


@pytest.mark.parametrize("gradient", ["bilevel", "implicit"])
def test_operations_can_be_counted_where_iterations_keep_no_gradient(gradient):
    module, init = SlotAttention(4, 6, gradient=gradient), torch.randn(1, 3, 6, requires_grad=True)
    with FlopCounterMode(display=False) as counter:  # hooks every module whose inputs want a gradient
        module(Features(torch.randn(1, 8, 4), (2, 4)), init)
    assert counter.get_total_flops() > 0


def test_learned_start_trains_under_bilevel():
    features, _ = example()
    init = LearnedInit(K, SLOT_DIM).double()
    module(gradient="bilevel")(features, init(B)).vectors.sum().backward()
    assert init.table.grad.abs().sum() > 0


def test_wrong_feature_width_names_the_way_out():
    features, init = example()
    with pytest.raises(ShapeError, match=r"features of width 16.*feature_dim=10"):
        SlotAttention(16, SLOT_DIM).double()(features, init)


def test_wrong_initial_slots_are_refused():
    features, init = example()
    with pytest.raises(ShapeError, match="initial slots"):
        module()(features, init[:2])


def test_heads_must_divide_the_slot_width():
    with pytest.raises(ConfigError, match="divisible"):
        SlotAttention(8, 10, num_heads=3)


def test_given_noise_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"\[2, 5, 8\]"):
        GaussianInit(K, SLOT_DIM)(2, noise=torch.zeros(2, K, 9))


def test_shared_gaussian_draws_slots_from_one_distribution():
    init = GaussianInit(K, SLOT_DIM)
    slots = init(20_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slots.mean(dim=0), init.mean[0].expand(K, -1), atol=0.05, rtol=0)
    torch.testing.assert_close(slots.std(dim=0), init.log_std.exp()[0].expand(K, -1), atol=0.05, rtol=0)


def test_clusters_start_separates_blobs_before_any_training():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(12)[:4] * 6
    member = torch.arange(4).repeat_interleave(16)
    tokens = (centres[member] + 0.3 * torch.randn(8, 64, 12, generator=generator)).requires_grad_()
    agreement = {}
    for start in ("glorot", "clusters"):
        torch.manual_seed(0)
        attention = SlotAttention(12, 16, num_iterations=5, start=start)
        slots = attention(Features(tokens, (8, 8)), GaussianInit(6, 16)(8, generator=torch.Generator().manual_seed(1)))
        best = slots.attn.argmax(dim=1)
        same_truth = member[:, None] == member
        agreement[start] = float((same_truth == (best[:, :, None] == best[:, None])).float().mean())
    assert agreement["clusters"] > 0.9 > agreement["glorot"]


@pytest.mark.parametrize("gradient", ["full", "bilevel", "implicit"])
def test_autocast_loses_no_gradient_to_iterations_that_ran_without_one(gradient):
    features, init = example()
    attention = module(gradient=gradient, position=True, input_mlp=True, out_dim=6).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = attention(Features(features.tokens.float(), GRID), init.float()).vectors
    vectors.float().square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
