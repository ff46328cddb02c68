"""CODA is the same experiment on one process and on two, at every ZeRO stage, in every precision, with every way to save memory."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ocl.train.moments import Moments

EMA = {"ema": 0.9, "keep_checkpoints": 5, "checkpoint_every": 5}
EVALUATED = {**EMA, "eval_every": 10}
SHORT = {**EMA, "steps": 10}
OFFLOAD = {"device": "cpu"}


def spec(name, size, stage=0, training=EMA, **more):
    zero = {"stage": stage, **more.pop("zero", {})}
    return {"name": name, "size": size, "zero": zero, "training": training, **more}


PLAN = [
    spec("local", 0, training=EVALUATED, evaluate=True),
    *(spec(f"two-{stage}", 2, stage, EVALUATED, evaluate=True) for stage in range(4)),
    spec("checkpointing-3", 2, 3, SHORT, denoiser={"checkpointing": True}),
    spec("scaled-2", 2, 2, {**SHORT, "precision": "fp16"}),
]
MORE = [
    spec("local", 0),
    *(spec(f"one-{stage}", 1, stage) for stage in range(4)),
    *(spec(f"separate-{stage}", 2, stage, denoiser={"passes": "separate"}) for stage in range(4)),
    *(spec(f"checkpointing-{stage}", 2, stage, denoiser={"checkpointing": True}) for stage in range(3)),
    *(spec(f"selective-{stage}", 2, stage, denoiser={"checkpointing": "selective"}) for stage in range(3)),
    *(spec(f"channels_last-{stage}", 2, stage, {**EMA, "channels_last": True}) for stage in range(4)),
    *(spec(f"cache-{stage}", 2, stage, cache=True) for stage in range(4)),
    spec("no-trunk-3", 2, 3, denoiser={"share_trunk": False, "checkpointing": True, "passes": "separate"}),
    spec("overlap-2", 2, 2, zero={"overlap_comm": True}),
    spec("overlap-3", 2, 3, zero={"overlap_comm": True}),
    spec("hpz-3", 2, 3, zero={"zero_hpz_partition_size": 2}),
    spec("offload-1", 2, 1, zero={"offload_optimizer": OFFLOAD}),
    spec("offload-2", 2, 2, zero={"offload_optimizer": OFFLOAD}),
    spec("offload-3", 2, 3, zero={"offload_optimizer": OFFLOAD, "offload_param": OFFLOAD}),
    spec("persistent-3", 2, 3, zero={"stage3_param_persistence_threshold": 200}),
    spec("background-2", 2, 2, {**EMA, "write_in_background": True}),
    spec("local-learned", 0, registers="learned"),
    spec("learned-3", 2, 3, registers="learned"),
    spec("local-accumulate", 0, training={**EMA, "accumulate": 2}),
    *(spec(f"accumulate-{stage}", 2, stage, {**EMA, "accumulate": 2}) for stage in range(4)),
    spec("local-bf16", 0, training={**EMA, "precision": "bf16"}),
    *(spec(f"bf16-{stage}", 2, stage, {**EMA, "precision": "bf16"}) for stage in range(4)),
    spec("local-fp16", 0, training={**EMA, "precision": "fp16"}),
    *(spec(f"fp16-{stage}", 2, stage, {**EMA, "precision": "fp16"}) for stage in range(4)),
]
REFERENCES = {"bf16", "fp16", "accumulate", "learned"}  # kinds that have a local run of their own
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "scaled": torch.float16}


def names(plan):
    return [each["name"] for each in plan if not each["name"].startswith("local")]


@pytest.fixture(scope="module")
def runs(carry_out_all):
    return carry_out_all(PLAN)


@pytest.fixture(scope="module")
def more_runs(carry_out_all):
    return carry_out_all(MORE)


def lines_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same(runs, name, tolerance):
    kind = name.rpartition("-")[0]
    close = tolerance[DTYPES.get(kind, torch.float32)]
    ours, theirs = (lines_of(runs[each]) for each in (name, f"local-{kind}" if kind in REFERENCES else "local"))
    theirs = theirs[: len(ours)]
    assert len(ours) in (10, 20) and len(theirs) == len(ours)
    for key in ("loss/Reconstruction", "loss/ContrastiveAlignment", "grad_norm"):
        found, wanted = (torch.tensor([line[key] for line in each]) for each in (ours, theirs))
        assert wanted.isfinite().all()
        if key == "grad_norm":  # a gradient may magnify the rounding of earlier steps; the weights at the end bound what it did
            torch.testing.assert_close(found, wanted, **{**close, "rtol": max(close["rtol"], 1e-2)})
            found, wanted = found[:5], wanted[:5]
        torch.testing.assert_close(found, wanted, **close)
    assert [(line["step"], line["samples"]) for line in ours] == [(line["step"], line["samples"]) for line in theirs]
    step = f"checkpoints/step-{len(ours):08d}"
    mine, other = (runs[each] / step for each in (name, f"local-{kind}" if kind in REFERENCES else "local"))
    for file in ("model.safetensors", "ema.safetensors"):
        assert_close_weights(load_file(mine / file), load_file(other / file), close)
    assert_close_moments(mine, other, close)


def assert_close_weights(found, wanted, close):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **close, msg=name)


def assert_close_moments(mine, other, close):
    found, wanted = Moments(mine), Moments(other)
    assert found.names == wanted.names
    weights = load_file(other / "model.safetensors")
    for key in wanted.names:
        shape = () if key.endswith(".step") else weights[key.rpartition(".")[0]].shape
        torch.testing.assert_close(found.whole(key, shape), wanted.whole(key, shape), **close, msg=key)


@pytest.mark.parametrize("name", names(PLAN))
def test_losses_weights_and_moments_are_those_of_one_process(runs, tolerance, name):
    assert_same(runs, name, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(MORE))
def test_more_ways_to_compute_the_same(more_runs, tolerance, name):
    assert_same(more_runs, name, tolerance)


def test_contrast_was_part_of_the_comparison(runs):
    for name, run in runs.items():
        values = [line["loss/ContrastiveAlignment"] for line in lines_of(run)]
        assert values[:4] == [0] * 4 and len(values[4:]) >= 3 and all(value < 0 for value in values[4:]), name


@pytest.mark.parametrize("stage", range(4))
def test_only_trained_weights_are_saved_and_each_process_writes_a_part_of_the_moments(runs, stage):
    folder = runs[f"two-{stage}"] / "checkpoints/step-00000020"
    parts = [load_file(folder / f"optimizer-0000{rank}-of-00002.safetensors") for rank in (1, 2)]
    counts = [sum(tensor.numel() for tensor in part.values()) for part in parts]
    assert max(counts) < 0.75 * sum(counts)
    saved = load_file(folder / "model.safetensors")
    assert not any("autoencoder" in key or ".attn1." in key or ".to_q." in key for key in saved if key.startswith("decoder"))


@pytest.mark.parametrize("stage", range(4))
def test_evaluation_sees_the_average_and_does_not_disturb_training(runs, stage):
    ours, theirs = ([line["eval/sum"] for line in lines_of(runs[name]) if "eval/sum" in line] for name in (f"two-{stage}", "local"))
    assert len(ours) == 2 and ours == pytest.approx(theirs, rel=1e-6)
    folder = runs[f"two-{stage}"] / "checkpoints/step-00000020"
    average, weights = (load_file(folder / f"{name}.safetensors") for name in ("ema", "model"))
    assert sum((average[name] - weights[name]).abs().sum().item() for name in weights) > 1e-3
