"""What a run tells beyond its losses: traces, operations per second, services; and checkpoints written beside the training."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ocl.encoders import CNN
from ocl.errors import ConfigError, MissingExtra
from ocl.losses import ContrastiveAlignment, Reconstruction
from ocl.models import coda
from ocl.train import LocalEngine, Training, fit
from ocl.train.checkpoint import complete, latest, load
from ocl.train.meter import Summary
from ocl.train.profile import Flops, useful_flops
from ocl.train.services import SERVICES
from ocl.train.world import World
from ocl.types import Batch

TWO_SECONDS = Summary(0.0, {}, 0.0, 0, 0.0, 0.0, 0.0, seconds=2.0)


def lines_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_trace_holds_the_updates_that_were_asked_for(program, tmp_path):
    program.train(tmp_path, program.training(steps=6, profile=2))
    events = json.loads((tmp_path / "profile" / "rank-00000.json").read_text())["traceEvents"]
    steps = [event for event in events if str(event.get("name", "")).startswith("Optimizer.step")]
    assert len(steps) == 2


def test_a_run_that_ends_within_a_trace_writes_what_it_has_and_says_so(program, tmp_path, capsys):
    program.train(tmp_path, program.training(steps=4, profile=3))
    events = json.loads((tmp_path / "profile" / "rank-00000.json").read_text())["traceEvents"]
    assert len([event for event in events if str(event.get("name", "")).startswith("Optimizer.step")]) == 2
    assert "training.profile=3: the trace holds 2 updates, this start made no more" in capsys.readouterr().out


def test_a_run_that_ends_before_a_trace_says_so(program, tmp_path, capsys):
    program.train(tmp_path, program.training(steps=2, profile=3))
    assert not (tmp_path / "profile").exists()
    said = capsys.readouterr().out
    assert "training.profile=3: nothing was traced, this start made 2 updates and the first 2 are left out" in said


def test_operations_are_counted_once_and_compared_with_the_peak(program, tmp_path):
    program.train(tmp_path, program.training(steps=8, peak_tflops=1e-3))
    lines = lines_of(tmp_path)
    for line in lines:
        assert line["mfu"] == pytest.approx(line["tflops"] / 1e-3) and line["tflops"] > 0
    program.train(tmp_path / "without", program.training(steps=8))
    assert "mfu" not in lines_of(tmp_path / "without")[-1]


def test_a_matrix_product_counts_two_operations_for_each_of_its_products():
    flops = Flops(1.0, World())
    with flops.counting():
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert flops.rates(TWO_SECONDS)["tflops"] == pytest.approx(2 * 3 * 4 * 5 / 2 / 1e12)


def test_operations_are_counted_again_for_updates_of_another_kind():
    flops, value = Flops(1.0, World()), torch.ones(10, 10)
    for products, kind in ((1, "warm-up"), (1, "warm-up"), (3, "after it"), (3, "after it")):
        with flops.counting(kind):
            for _ in range(products):
                value @ value
    assert flops.rates(TWO_SECONDS)["tflops"] == pytest.approx((1 + 1 + 3 + 3) * 2000 / 2 / 1e12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_computes_again_is_not_counted(reentrant):
    def counted(checkpointing):
        layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        value = torch.ones(4, 8, requires_grad=True)
        with useful_flops() as counter:
            made = checkpoint(layers, value, use_reentrant=reentrant) if checkpointing else layers(value)
            made.sum().backward()
        return counter.get_total_flops()

    assert counted(True) == counted(False) == 3 * 2 * (2 * 4 * 8 * 8)


def test_a_run_counts_the_mixtures_of_a_contrastive_loss_once_its_warm_up_is_over(tiny_pipeline, tmp_path):
    weights = str(tiny_pipeline("sd"))
    torch.manual_seed(0)
    model = coda(weights=weights, num_slots=3, slot_dim=8, encoder=CNN(8, stride=4))
    training = Training(steps=4, batch_size=2, log_every=2, checkpoint_every=4, peak_tflops=1.0)
    batch = Batch(torch.rand(2, 3, 16, 16), keys=("first", "second"))
    losses = [Reconstruction(), ContrastiveAlignment(warmup_steps=2)]
    fit(LocalEngine(model, training), losses, lambda start: itertools.repeat(batch), training, run=tmp_path)
    before, after = (line["tflops"] / line["samples_per_second"] for line in lines_of(tmp_path))
    assert after > 1.2 * before


def test_background_checkpoints_are_those_that_are_written_at_once(program, tmp_path):
    for name, background in (("at-once", False), ("background", True)):
        program.train(tmp_path / name, program.training(steps=20, keep_checkpoints=9, write_in_background=background))
    ours, theirs = complete(tmp_path / "background"), complete(tmp_path / "at-once")
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) == 5
    for mine, other in zip(ours, theirs, strict=True):
        for name in load(other).files:
            assert (mine / name).read_bytes() == (other / name).read_bytes()


def test_a_background_run_goes_on_from_its_last_complete_checkpoint(program, tmp_path):
    program.train(tmp_path, program.training(steps=10, write_in_background=True))
    program.train(tmp_path, program.training(steps=20, write_in_background=True))
    assert load(latest(tmp_path)).step == 20


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_names_what_to_install(program, tmp_path, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed; runs where it is not")
    with pytest.raises(MissingExtra, match=rf'training.track=\[{name}\] need .*pip install "ocl\[{name}\]"'):
        program.train(tmp_path, program.training(steps=2, track=(name,)))


def test_an_unknown_service_is_refused():
    with pytest.raises(ConfigError, match=r"training.track must name only wandb, mlflow"):
        Training(track=("visdom",))


@pytest.fixture
def stand_in(monkeypatch):
    """The module in tests/train/stand_ins of that name, imported in place of a package that is not installed."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("stand_ins") / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return load


def logged(run):
    """(step, name, number) of every finite number in the log."""
    lines = lines_of(run)
    found = [(line["step"], name, value) for line in lines for name, value in line.items() if name != "step" and value is not None]
    assert {4, 8, 12, 16} <= {step for step, _, _ in found} and {"loss", "grad_norm"} <= {name for _, name, _ in found}
    return found


def train_in_two_starts(program, run, name):
    for steps in (8, 16):
        program.train(run, program.training(steps=steps, track=(name,)))


def test_wandb_is_told_all_numbers_of_the_log_in_one_run(program, tmp_path, stand_in):
    wandb = stand_in("wandb")
    train_in_two_starts(program, tmp_path / "mine", "wandb")
    (run,) = wandb.runs.values()
    assert (run.name, run.dir, run.finished) == ("mine", tmp_path / "mine", True)
    assert [(step, *item) for step, values in run.history.items() for item in values.items()] == logged(tmp_path / "mine")


def test_mlflow_is_told_all_numbers_of_the_log_in_one_run(program, tmp_path, stand_in):
    mlflow = stand_in("mlflow")
    train_in_two_starts(program, tmp_path / "mine", "mlflow")
    (run,) = mlflow.runs.values()
    assert run.name == "mine" and mlflow.active == []
    assert run.history == logged(tmp_path / "mine")


def test_mlflow_takes_no_brackets_so_protocols_lose_theirs(tmp_path, stand_in):
    mlflow = stand_in("mlflow")
    service = SERVICES["mlflow"](tmp_path)
    service.write(3, {"eval/mBO_i[coda]": 0.5})
    service.close()
    assert mlflow.runs["run0"].history == [(3, "eval/mBO_i coda", 0.5)]


def test_wandb_gets_the_numbers_of_the_log(program, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason='pip install "ocl[wandb]" to test it')
    monkeypatch.setenv("WANDB_MODE", "offline")
    program.train(tmp_path, program.training(steps=4, track=("wandb",)))
    assert list((tmp_path / "wandb").glob("offline-run-*")) and (tmp_path / "wandb.id").read_text()


def test_mlflow_gets_the_numbers_of_the_log(program, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason='pip install "ocl[mlflow]" to test it')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    program.train(tmp_path / "run", program.training(steps=8, track=("mlflow",)))
    history = mlflow.MlflowClient().get_metric_history((tmp_path / "run" / "mlflow.id").read_text(), "loss")
    assert [(point.step, point.value) for point in history] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines_of(tmp_path / "run")
    ]
