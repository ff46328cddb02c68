"""The options are the config schema: they parse, nest, and refuse what cannot work, naming the key."""

import pytest
from jsonargparse import ArgumentParser

from ocl.errors import ConfigError
from ocl.train import Optimizer, Schedule, Training


def test_options_parse_from_a_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--training", type=Training, default=Training())
    given = ["--training.steps=10", "--training.optimizer.lr=0.1", "--training.schedule.kind=cosine", "--training.clip=null"]
    training = parser.instantiate(parser.parse_args(given)).training
    assert training == Training(steps=10, optimizer=Optimizer(lr=0.1), schedule=Schedule(kind="cosine"), clip=None)


@pytest.mark.parametrize(
    ("kind", "wrong", "names"),
    [
        (Training, {"steps": 0}, "training.steps must be 1 or more, got 0"),
        (Training, {"batch_size": -1}, "training.batch_size"),
        (Training, {"accumulate": 0}, "training.accumulate"),
        (Training, {"keep_checkpoints": 0}, "training.keep_checkpoints"),
        (Training, {"eval_every": -1}, "training.eval_every must be 0 or more"),
        (Training, {"clip": 0.0}, "training.clip must be positive, or null"),
        (Training, {"clip": float("nan")}, "training.clip"),
        (Training, {"ema": 1.0}, "training.ema must lie in"),
        (Training, {"precision": "fp8"}, "training.precision must be one of fp32, bf16, fp16, got 'fp8'"),
        (Training, {"seed": -1}, "training.seed"),
        (Training, {"seed": 2**63}, "training.seed"),
        (Optimizer, {"lr": 0.0}, "optimizer.lr must be positive"),
        (Optimizer, {"lr": float("nan")}, "optimizer.lr"),
        (Optimizer, {"betas": (0.9, 1.0)}, "optimizer.betas"),
        (Optimizer, {"weight_decay": -0.1}, "optimizer.weight_decay"),
        (Schedule, {"kind": "step"}, "schedule.kind must be one of"),
        (Schedule, {"final": 1.5}, "schedule.final"),
        (Schedule, {"kind": "exponential", "final": 0.0}, "schedule.final must be positive for exponential"),
        (Schedule, {"warmup_steps": -1}, "schedule.warmup_steps"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(kind, wrong, names):
    with pytest.raises(ConfigError, match=names):
        kind(**wrong)
