"""Trains small models on one or two real processes, as a launcher would start them, and kills them where it is told to.

    python program.py PLAN.json

PLAN is a list of runs: {"run": folder, "size": 2 (0: the local engine), "model": "coda" or "slots", "zero": {"stage": 2},
"training": {...}, "denoiser": {...}, "cache": true, "timeout": the engine's, "kills": [...], "trouble": {...}}. Processes are
forked from this one, which has imported everything, so that a start costs less than a second. Each run ends with one line on
standard output: its folder, and how each of its processes ended.

A trouble is {"rank": 1, "nan_at": step}, {"rank": 1, "file_limit": bytes}, {"rank": 1, "slow_data" or "slow_passes": seconds} or
{"hangs": true} (every fifth sample never comes).
A kill is {"rank": 0, 1 or "all", "after": batches read since the start, "wait": seconds, "signal": "SIGKILL" or another} or
{"rank": 0 or 1, "operation": n}: the n-th write, sync, rename or removal in a checkpoint. As torchrun does, the rest is killed
when one process ends badly, and the run is started again with resume.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (what deepspeed.initialize imports: here once, not in every fork)
import diffusers
import torch
import torch._dynamo
import torch.utils.tensorboard
import transformers  # noqa: F401
from torch import Tensor, nn

from ocl.data.cache import Cache
from ocl.data.loader import batches
from ocl.data.sample import Dataset, Sample
from ocl.decoders import LatentDiffusion, PatchMLP
from ocl.decoders.diffusion import LatentUNet, LearnedRegisters, NullPrompt, SlotTokens
from ocl.encoders import CNN
from ocl.interfaces import Loss
from ocl.losses import ContrastiveAlignment, Reconstruction
from ocl.models import coda, slot_attention
from ocl.train import DeepSpeed, Local, Optimizer, Schedule, Training, fit, precompute
from ocl.types import Batch, Step

sys.path.append(str(Path(__file__).parents[1]))  # tests
from kills import kill_in_checkpoint

Spec = Mapping[str, Any]
SIZE = 16
PATIENCE = 120  # seconds for which any of these runs may be silent
GRACE = 20  # seconds that the others have to end by themselves after one ended badly


class Squares(Dataset):
    """A hundred small images, each a bright square on noise. Some of them may never come."""

    def __init__(self, hangs: bool = False) -> None:
        self.hangs = hangs

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Sample:
        if self.hangs and index % 5 == 0:
            time.sleep(60)
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 60, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        top, left = torch.randint(0, SIZE - 4, (2,), generator=generator).tolist()
        image[index % 3, top : top + 4, left : left + 4] = 250
        return Sample(image=image, key=f"square-{index}")


class Poisoned(Loss):
    """NaN from one step on."""

    def __init__(self, first_bad: int) -> None:
        super().__init__()
        self.first_bad = first_bad

    def forward(self, step: Step) -> Tensor:
        return step.output.decoding.error().mean() * (math.nan if step.index >= self.first_bad else 1.0)


class Slow(Loss):
    """The same loss, after a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, step: Step) -> Tensor:
        time.sleep(self.seconds)
        return step.output.decoding.error().mean()


def write_cache(model: nn.Module, folder: Path) -> None:
    """The moments of all images, as `ocl cache --parts latents` writes them."""
    recipe, device = precompute.recipe_for(model, ("latents",), "fp32", mirrored=False), torch.device("cpu")
    layout, _ = precompute.plan(recipe, Squares(), batch_size=10, device=device)
    shards = precompute.prepare(folder, layout, {}, state={})
    precompute.write(folder, recipe, Squares(), layout, shards, batch_size=10, device=device)


def options(spec: Spec) -> Training:
    given = {"steps": 20, "batch_size": 4, "log_every": 1, "checkpoint_every": 10, "precision": "fp32", **spec.get("training", {})}
    optimizer = Optimizer(lr=1e-3, eps=1e-5, weight_decay=0.01, rates={"slot_module": 0.5})
    return Training(optimizer=optimizer, schedule=Schedule(warmup_steps=3), seed=3, **given)


def model_of(spec: Spec) -> tuple[nn.Module, list[Loss]]:
    torch.manual_seed(0)
    if spec.get("model", "coda") == "slots":
        parts = {"encoder": CNN(8, stride=4), "decoder": PatchMLP(8, image_size=SIZE, patch=4, hidden_dim=16)}
        return slot_attention(num_slots=3, slot_dim=8, image_size=SIZE, **parts), [Reconstruction()]
    weights = spec["weights"]
    registers = LearnedRegisters(2, 32) if spec.get("registers") == "learned" else NullPrompt(weights)
    decoder = LatentDiffusion(
        weights, denoiser=LatentUNet(weights, **spec.get("denoiser", {})), conditioner=SlotTokens(registers), drop_rate=0.1
    )
    model = coda(weights=weights, num_slots=3, slot_dim=8, encoder=CNN(8, stride=4), decoder=decoder)
    return model, [Reconstruction(), ContrastiveAlignment(weight=0.5, warmup_steps=4)]


def train(spec: Spec) -> None:
    """In a process of its own, with the variables of a launcher."""
    run, training = Path(spec["run"]), options(spec)
    model, losses = model_of(spec)
    setup = DeepSpeed(config=written(run, spec), timeout=spec.get("timeout", PATIENCE)) if spec["size"] else Local()
    place = setup.start(training, torch.device("cpu"))
    world, trouble = place.world, spec.get("trouble", {})
    if spec.get("cache"):
        world.first(lambda: write_cache(model, run / "cache"))
    cache = Cache(run / "cache") if spec.get("cache") else None
    engine = setup.build(model, training, place)
    if trouble.get("rank") == world.rank:
        if "nan_at" in trouble:
            losses = [Poisoned(trouble["nan_at"])]
        if "slow_passes" in trouble:
            losses = [Slow(trouble["slow_passes"])]
        if "file_limit" in trouble:
            resource.setrlimit(resource.RLIMIT_FSIZE, (trouble["file_limit"], resource.RLIM_INFINITY))

    def stream(start: int) -> Iterator[Batch]:
        notes = os.open(run / f"read-{world.rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for batch in batches(
            Squares(trouble.get("hangs", False)), batch_size=training.batch_size, seed=3, start=start, rank=world.rank,
            size=world.size, workers=training.workers, timeout=training.data_timeout, cache=cache,
        ):  # fmt: skip
            os.write(notes, b".")
            if trouble.get("rank") == world.rank:
                time.sleep(trouble.get("slow_data", 0))
            yield batch

    def size_of_weights(model: nn.Module, step: int) -> dict[str, float]:
        return {"sum": sum(value.double().abs().sum().item() for value in model.slot_module.parameters())}

    evaluate = size_of_weights if spec.get("evaluate") else None
    outcome = fit(engine, losses, stream, training, run=run, resume=True, evaluate=evaluate)
    world.leave()
    print(f"rank {world.rank} ended at {outcome.step} by {outcome.stopped_by}", flush=True)


def written(run: Path, spec: Spec) -> Path:
    path = run / f"zero-{os.getpid()}.json"
    path.write_text(json.dumps({"zero_optimization": spec.get("zero", {}), **spec.get("config", {})}))
    return path


def fork(spec: Spec, rank: int, port: int, kill: Spec) -> int:
    child = os.fork()
    if child:
        return child
    if spec["size"]:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(spec["size"]), "LOCAL_RANK": str(rank),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    log = os.open(Path(spec["run"]) / f"output-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "operation" in kill and kill["rank"] == rank:
        kill_in_checkpoint(kill["operation"])
    status = 1
    try:
        train(spec)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def once(spec: Spec, kill: Spec) -> list[str]:
    """Start all processes, kill as told, and wait; when one ends badly the others have a moment to see it, and are killed."""
    run, count = Path(spec["run"]), max(spec["size"], 1)
    run.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = size_of(run / "read-0")
    children = [fork(spec, rank, port, kill) for rank in range(count)]
    ended: dict[int, str] = {}
    deadline = time.monotonic() + PATIENCE
    while len(ended) < count:
        for rank, child in enumerate(children):
            if rank in ended:
                continue
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[rank] = "killed" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}"
        if "after" in kill and size_of(run / "read-0") - before > kill["after"]:
            time.sleep(kill.get("wait", 0.0))
            for rank in range(count) if kill["rank"] == "all" else [kill["rank"]]:
                if rank not in ended:
                    os.kill(children[rank], getattr(signal, kill.get("signal", "SIGKILL")))
            kill = {}
        if any(how != "exit 0" for how in ended.values()) and time.monotonic() + GRACE < deadline:
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for rank in range(count):
                if rank not in ended:
                    os.kill(children[rank], signal.SIGKILL)
        time.sleep(0.002)
    return [ended[rank] for rank in range(count)]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def main() -> None:
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    plan = json.loads(Path(sys.argv[1]).read_text())
    for spec in plan[:1]:
        model_of(spec)  # imports what models import lazily
    for spec in plan:
        ends = [once(spec, kill) for kill in spec.get("kills", [])]
        if not spec.get("only_kills"):
            ends.append(once(spec, {}))
        print(json.dumps({"run": spec["run"], "ends": ends}), flush=True)


if __name__ == "__main__":
    main()
