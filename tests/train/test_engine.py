"""One update of the local engine obeys the laws it names: accumulation, clipping, decay, precision, what is trained."""

import copy

import pytest
import torch
from torch import nn

from ocl.errors import ConfigError
from ocl.losses import Reconstruction
from ocl.nn.freezing import Frozen
from ocl.train import LocalEngine, Optimizer, Training
from ocl.train import optimizer as optimizers
from ocl.train.seeding import sample_generators
from ocl.types import Batch, Decoding, Features, Output, Slots, Step


class Linear(nn.Module):
    """The smallest model: each pixel is a token, and one linear map predicts it. No randomness, no batch statistics."""

    def __init__(self):
        super().__init__()
        self.frozen = Frozen(nn.Conv2d(3, 4, 1))
        self.map = nn.Conv2d(4, 3, 1)

    def forward(self, batch: Batch, *, generator=None) -> Output:
        size, height, width = len(batch), *batch.image.shape[2:]
        hidden = self.frozen.module(batch.image)
        attn = torch.full((size, 2, height * width), 0.5)
        slots = Slots(torch.zeros(size, 2, 4), attn, (height, width))
        features = Features(hidden.flatten(2).mT, (height, width))
        return Output(features, slots, Decoding(self.map(hidden), batch.image))


def make(**options):
    torch.manual_seed(0)
    return LocalEngine(Linear(), Training(**{"optimizer": Optimizer(lr=0.01), **options}))


def run_pass(engine, batch, step=0):
    batch = engine.place(batch)
    with engine.autocast():
        output = engine.model(batch, generator=sample_generators(0, range(len(batch))))
        loss = Reconstruction()(Step(batch, output, step))
    engine.backward(loss)
    return output, loss


def weights(engine):
    with engine.evaluating() as model:
        return {name: value.clone() for name, value in model.state_dict().items()}


def test_two_half_batches_equal_one_batch(one_batch):
    whole, halves = make(), make(accumulate=2)
    for _ in range(3):
        run_pass(whole, one_batch(0, 8))
        whole_norm = whole.step(0.01)
        run_pass(halves, one_batch(0, 4))
        run_pass(halves, one_batch(4, 8))
        torch.testing.assert_close(halves.step(0.01), whole_norm)
    torch.testing.assert_close(weights(halves), weights(whole))


def test_the_update_is_adamw_at_the_given_rate(one_batch):
    engine = make(optimizer=Optimizer(lr=123.0, weight_decay=0.1), clip=None)
    reference = copy.deepcopy(engine.model)
    decayed = {"params": [reference.map.weight], "weight_decay": 0.1}
    adamw = torch.optim.AdamW([decayed, {"params": [reference.map.bias], "weight_decay": 0.0}], lr=0.02)
    for _ in range(3):
        run_pass(engine, one_batch())
        engine.step(0.02)
        adamw.zero_grad()
        reference(one_batch()).decoding.error().mean().backward()
        adamw.step()
    torch.testing.assert_close(weights(engine)["map.weight"], reference.map.weight.detach())
    torch.testing.assert_close(weights(engine)["map.bias"], reference.map.bias.detach())


def test_clipping_bounds_the_gradient_and_reports_the_norm_before(one_batch, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: seen.append(
        torch.nn.utils.get_total_norm([p.grad for group in self.param_groups for p in group["params"]])
    ))  # fmt: skip
    free, clipped = make(clip=None), make(clip=1e-3)
    for engine in (free, clipped):
        run_pass(engine, one_batch())
    norms = [free.step(0.01), clipped.step(0.01)]
    torch.testing.assert_close(norms[0], norms[1])
    assert norms[0] > 1e-3
    torch.testing.assert_close(seen[0], norms[0])
    assert seen[1].item() == pytest.approx(1e-3, rel=1e-2)


def test_decay_spares_vectors_unless_told_otherwise():
    trained = dict(nn.Linear(3, 2).named_parameters())
    spared = optimizers.build(trained, Optimizer(weight_decay=0.1))
    assert [(group["weight_decay"], len(group["params"])) for group in spared.param_groups] == [(0.1, 1), (0.0, 1)]
    everything = optimizers.build(trained, Optimizer(weight_decay=0.1, decay_vectors=True))
    assert [(group["weight_decay"], len(group["params"])) for group in everything.param_groups] == [(0.1, 2)]


def test_parts_learn_at_rates_of_their_own(one_batch):
    before, after = {}, {}
    for rates in ({}, {"map": 0.5}, {"map": 0.5, "map.bias": 0}):
        engine = make(optimizer=Optimizer(lr=1.0, eps=1e-12, rates=rates), clip=None)
        before = weights(engine)
        run_pass(engine, one_batch())
        engine.step(0.01)
        after[str(rates)] = weights(engine)
    full, half, mixed = (
        {name: (found[name] - before[name]).abs().mean().item() for name in ("map.weight", "map.bias")} for found in after.values()
    )
    assert full == pytest.approx({"map.weight": 0.01, "map.bias": 0.01}, rel=1e-3), "the first update of Adam is the rate itself"
    assert half == pytest.approx({"map.weight": 0.005, "map.bias": 0.005}, rel=1e-3)
    assert mixed == pytest.approx({"map.weight": 0.005, "map.bias": 0}, rel=1e-3), "the longest name counts"


def test_rates_must_name_what_is_trained_and_be_finite():
    with pytest.raises(ConfigError, match=r"rates names frozen, .* trained parts are map"):
        make(optimizer=Optimizer(rates={"frozen": 0.1}))
    with pytest.raises(ConfigError, match="rates names ma,"):
        make(optimizer=Optimizer(rates={"ma": 0.1}))
    with pytest.raises(ConfigError, match=r"optimizer\.rates of map must be 0 or more"):
        Optimizer(rates={"map": -1.0})


def test_only_trained_parameters_change_and_are_saved(tmp_path, one_batch):
    engine = make()
    before = weights(engine)
    run_pass(engine, one_batch())
    engine.step(0.01)
    after = weights(engine)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"map.weight", "map.bias"}
    engine.snapshot().write(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {"map.weight", "map.bias"}


def test_a_model_without_trained_parameters_is_refused():
    with pytest.raises(ConfigError, match="unfreeze"):
        LocalEngine(Linear().requires_grad_(False), Training())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_each_precision_runs_and_keeps_float32_weights(one_batch, precision, dtype):
    engine = make(precision=precision)
    before = weights(engine)
    output, loss = run_pass(engine, one_batch())
    norm = engine.step(0.01)
    assert output.decoding.prediction.dtype == dtype
    assert loss.dtype == torch.float32 and torch.isfinite(norm)
    after = weights(engine)
    assert after["map.weight"].dtype == torch.float32
    assert not torch.equal(before["map.weight"], after["map.weight"])


def test_fp16_gradients_are_unscaled_before_they_are_clipped(one_batch):
    full, half = make(), make(precision="fp16")
    for engine in (full, half):
        run_pass(engine, one_batch())
    torch.testing.assert_close(half.step(0.01), full.step(0.01), rtol=2e-2, atol=0)


def test_fp16_skips_an_update_that_overflows_and_lowers_its_scale(one_batch):
    engine = make(precision="fp16")
    before, scale = weights(engine), engine.snapshot().state["scaler"]["scale"]
    engine.backward(Reconstruction()(Step(one_batch(), engine.model(one_batch()))) * 1e38)
    assert not torch.isfinite(engine.step(0.01))
    assert all(torch.equal(before[name], value) for name, value in weights(engine).items())
    assert engine.snapshot().state["scaler"]["scale"] == scale / 2


def test_evaluation_sees_the_average_without_gradients_in_eval_mode(one_batch):
    engine = make(ema=0.9)
    start = {name: value.clone() for name, value in engine.model.state_dict().items()}
    run_pass(engine, one_batch())
    engine.step(0.01)
    trained = {name: value.clone() for name, value in engine.model.state_dict().items()}
    with engine.evaluating() as model:
        assert not model.training and not torch.is_grad_enabled()
        torch.testing.assert_close(model.map.weight, 0.9 * start["map.weight"] + 0.1 * trained["map.weight"])
    assert engine.model.training and torch.is_grad_enabled()
    assert all(torch.equal(trained[name], value) for name, value in engine.model.state_dict().items())


def test_channels_last_changes_layout_and_no_value(one_batch):
    engine, plain = make(channels_last=True), make()
    batch = engine.place(one_batch())
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    for each in (engine, plain):
        run_pass(each, one_batch())
        each.step(0.01)
    torch.testing.assert_close(weights(engine), weights(plain))


def test_compiled_training_equals_plain_training(one_batch, monkeypatch):
    """Through the dynamo tracer with the eager backend; the slow test below generates code as well."""
    monkeypatch.setattr(torch, "compile", lambda model, backend, compile=torch.compile: compile(model, backend="eager"))
    compiled, plain = make(compile=True), make()
    for engine in (compiled, plain):
        for _ in range(2):
            run_pass(engine, one_batch())
            engine.step(0.01)
    torch.testing.assert_close(weights(compiled), weights(plain))
    assert weights(compiled).keys() == weights(plain).keys()


@pytest.mark.slow
def test_compiled_training_with_generated_code_equals_plain_training(one_batch, tiny_model):
    engines = [LocalEngine(tiny_model(), Training(compile=compile)) for compile in (True, False)]
    for engine in engines:
        torch.manual_seed(0)
        engine.model.train()
        for part in engine.model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        for step in range(3):
            run_pass(engine, one_batch(), step)
            engine.step(0.01)
    torch.testing.assert_close(weights(engines[0]), weights(engines[1]), rtol=1e-4, atol=1e-5)
