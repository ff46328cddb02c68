"""What `fit` writes, when, and how it stops."""

import json
import math
import os
import signal
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ocl.data.loader import batches
from ocl.errors import CheckpointError, ConfigError, DataError, RangeError
from ocl.interfaces import Loss
from ocl.losses import Reconstruction
from ocl.train import LocalEngine, fit
from ocl.train.checkpoint import complete, latest, load
from ocl.types import Batch


@pytest.fixture
def train(program, tiny_model, tmp_path):
    """fit() on the tiny model with some of its arguments replaced; returns (outcome, engine)."""

    def run(*, losses=None, stream=None, evaluate=None, resume=False, model=None, run=tmp_path / "run", **options):
        training = program.training(**options)
        stream = stream or partial(stream_of, program.Squares(), training)
        engine = LocalEngine(model or tiny_model(), training)
        return fit(engine, losses or [Reconstruction()], stream, training, run=run, evaluate=evaluate, resume=resume), engine

    return run


def stream_of(dataset, training, start):
    return batches(dataset, batch_size=training.batch_size, seed=training.seed, start=start)


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss(train, tmp_path):
    train(steps=60)
    lines = log_of(tmp_path / "run")
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]


def test_lines_come_at_log_evaluation_and_checkpoint_steps(train, tmp_path):
    train(steps=11, log_every=4, checkpoint_every=5, eval_every=3, evaluate=lambda model, step: {"score": step})
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 4, 5, 6, 8, 9, 10, 11]
    assert {line["step"]: line["eval/score"] for line in lines if "eval/score" in line} == {3: 3, 6: 6, 9: 9, 11: 11}
    assert [path.name for path in complete(tmp_path / "run")] == ["step-00000010", "step-00000011"]


def test_a_line_tells_all_that_was_asked_for(train, tmp_path):
    train(steps=4)
    (line,) = log_of(tmp_path / "run")
    assert line.keys() == {
        "step", "loss", "lr", "grad_norm", "skipped", "samples", "samples_per_second", "data_wait", "memory_gib",
        "health/dead", "health/duplicate", "health/stripes", "health/entropy",
    }  # fmt: skip
    assert line["samples"] == 4 * 4 * 2
    assert 0 < line["data_wait"] < 1 and line["samples_per_second"] > 0


def test_tensorboard_holds_the_same_numbers(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(steps=8, log_every=4, checkpoint_every=100)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    told = [(event.step, event.value) for event in board.Scalars("loss")]
    assert told == [(line["step"], pytest.approx(line["loss"])) for line in log_of(tmp_path / "run")]


def test_without_a_terminal_plain_lines_are_printed(train, capsys):
    train(steps=8, log_every=4, checkpoint_every=100, eval_every=8, evaluate=lambda model, step: {"mBO[coda]": 0.25})
    out = capsys.readouterr().out
    assert "step 4/8  loss " in out and "samples/s" in out
    assert "step 8  mBO[coda] 0.25" in out


def test_several_losses_are_summed_and_told_apart(train, tmp_path):
    train(losses=[Reconstruction(), Reconstruction(weight=0.5)], steps=4)
    (line,) = log_of(tmp_path / "run")
    assert line["loss"] == pytest.approx(line["loss/Reconstruction0"] + line["loss/Reconstruction1"])
    assert line["loss/Reconstruction1"] == pytest.approx(0.5 * line["loss/Reconstruction0"])


def test_evaluation_does_not_disturb_training(train, tmp_path):
    def evaluate(model, step):
        torch.manual_seed(123)
        assert not model.training
        return {"noise": torch.rand(()).item()}

    train(steps=10, run=tmp_path / "with", evaluate=evaluate, eval_every=3)
    train(steps=10, run=tmp_path / "without")
    names = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
    for name in names:
        assert (latest(tmp_path / "with") / name).read_bytes() == (latest(tmp_path / "without") / name).read_bytes()


class Poisoned(Loss):
    """NaN from one step on."""

    def __init__(self, first_bad: int) -> None:
        super().__init__()
        self.first_bad = first_bad

    def forward(self, step):
        return step.output.decoding.error().mean() * (math.nan if step.index >= self.first_bad else 1.0)


def test_a_loss_that_is_not_finite_stops_with_step_samples_and_way_out(train, tmp_path):
    with pytest.raises(RangeError, match=r"at step 13 the loss \(nan\) was not") as error:
        train(losses=[Poisoned(13)], steps=40, log_every=50, checkpoint_every=10)
    for words in ("square-", "lower training.optimizer.lr", "then resume from", "step-00000010, which is intact"):
        assert words in str(error.value)
    assert latest(tmp_path / "run").name == "step-00000010"
    assert torch.isfinite(next(iter(load_weights(tmp_path / "run").values()))).all()


def load_weights(run):
    from safetensors.torch import load_file

    load(latest(run))
    return load_file(latest(run) / "model.safetensors")


class Explosive(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.inf


class InfiniteGradient(Loss):
    def forward(self, step):
        return Explosive.apply(step.output.decoding.error().mean())


def test_a_gradient_that_is_not_finite_stops_too(train, tmp_path):
    with pytest.raises(RangeError, match=r"at step 0 the gradient \(norm (nan|inf)"):
        train(losses=[InfiniteGradient()], steps=20)


def test_fp16_that_only_overflows_stops_and_names_bf16(train):
    with pytest.raises(RangeError, match=r"fp16 skipped 30 updates in a row.*use bf16"):
        train(losses=[InfiniteGradient()], steps=60, precision="fp16")


def test_a_run_folder_is_not_overwritten_without_resume(train, tmp_path):
    train(steps=5)
    with pytest.raises(CheckpointError, match="already holds step-00000005; resume this run, or choose another run folder"):
        train(steps=5)


def test_resuming_with_another_seed_is_refused(train):
    train(steps=5)
    with pytest.raises(CheckpointError, match=r"training\.seed=3, got 4; resume with the seed it had"):
        train(steps=10, seed=4, resume=True)


@pytest.mark.parametrize(("before", "after", "way_out"), [(0.9, None, "training.ema=0.999"), (None, 0.9, "training.ema=null")])
def test_resuming_with_and_without_average_is_refused(train, before, after, way_out):
    train(steps=5, ema=before)
    with pytest.raises(CheckpointError, match=way_out):
        train(steps=10, ema=after, resume=True)


def test_resuming_with_another_model_is_refused(train, tiny_model):
    train(steps=5)
    other = tiny_model()
    other.project = nn.Linear(16, 16, bias=False)
    with pytest.raises(CheckpointError, match=r"does not fit this model.*project\.bias"):
        train(steps=10, model=other, resume=True)


def test_fp16_resumes_with_its_loss_scale(train, program, tmp_path):
    train(steps=10, precision="fp16", run=tmp_path / "one")
    train(steps=5, precision="fp16", run=tmp_path / "two", schedule=program.training(steps=10).schedule)
    assert load(latest(tmp_path / "two")).engine["scaler"]["_growth_tracker"] == 5
    train(steps=10, precision="fp16", run=tmp_path / "two", resume=True)
    assert load(latest(tmp_path / "two")).engine == load(latest(tmp_path / "one")).engine


def test_a_stream_that_ends_is_named(train, program):
    def stream(start):
        yield from DataLoader(program.Squares(), batch_size=4, collate_fn=lambda samples: program_collate(samples))

    with pytest.raises(DataError, match="they ended at step 6"):
        train(stream=stream, steps=20)


def program_collate(samples) -> Batch:
    from ocl.data.sample import collate

    return collate(samples)


def test_training_without_a_loss_is_refused(train, program, tiny_model, tmp_path):
    training = program.training()
    with pytest.raises(ConfigError, match="at least one loss"):
        fit(LocalEngine(tiny_model(), training), [], iter, training, run=tmp_path)


def test_a_loss_with_weights_of_its_own_is_refused(train):
    class Learned(Loss):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, step):
            return self.scale * step.output.decoding.error().mean()

    with pytest.raises(ConfigError, match="Learned has trainable parameters that no optimizer sees"):
        train(losses=[Learned()])


class Signalling(Loss):
    """Sends this process a signal in one step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, step):
        if step.index == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step.output.decoding.error().mean()


def test_a_signal_in_a_step_saves_that_step(train):
    outcome, _ = train(losses=[Signalling(7)], steps=20, checkpoint_every=100, eval_every=8, evaluate=pytest.fail)
    assert (outcome.step, outcome.samples, outcome.stopped_by) == (8, 64, "SIGTERM")
    assert load(outcome.checkpoint).step == 8


def test_a_signal_while_evaluating_costs_one_more_step(train):
    def evaluate(model, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    outcome, _ = train(steps=20, eval_every=5, checkpoint_every=100, evaluate=evaluate)
    assert load(outcome.checkpoint).step == outcome.step == 6


def test_torn_and_later_log_lines_are_dropped_at_a_resume(train, tmp_path, read_log):
    train(steps=10, run=tmp_path / "one", log_every=5)
    train(steps=10, run=tmp_path / "two", log_every=5)
    path = tmp_path / "two" / "log.jsonl"
    with path.open("a") as file:
        file.write('{"step": 15, "loss": 0.1}\n{"step": 20, "lo')
    train(steps=10, run=tmp_path / "two", log_every=5, resume=True)
    assert read_log(tmp_path / "two") == read_log(tmp_path / "one")


def test_a_model_with_collapsed_slots_is_warned_about(train, tiny_model, capsys):
    model = tiny_model()
    model.project.requires_grad_(False).weight.zero_()
    model.project.bias.zero_()
    train(model=model, steps=24, log_every=4, checkpoint_every=100)
    out = capsys.readouterr().out
    assert out.count("slot health: entropy 1.00") == 1
    assert "warm the learning rate up longer" in out
