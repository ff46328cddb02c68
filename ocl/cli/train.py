"""`ocl train`: a config -> a run folder. `ocl train --run RUN --resume` goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import yaml

from ocl.cli import experiment as experiments
from ocl.cli.cache import open_cache
from ocl.cli.experiment import CONFIG, Experiment
from ocl.cli.options import add_device, command, device
from ocl.cli.scoring import held_out_evaluation
from ocl.data.loader import batches
from ocl.errors import CheckpointError, ConfigError
from ocl.nn.fingerprint import changes
from ocl.nn.freezing import awaited, restoring
from ocl.train import Outcome, fit
from ocl.train.checkpoint import fill, latest, load_model
from ocl.train.files import replace_text
from ocl.train.loop import check_losses
from ocl.train.services import check_installed
from ocl.train.staleness import check_state

FREE_TO_CHANGE = frozenset(
    f"training.{name}"
    for name in (
        "steps", "workers", "data_timeout", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints",
        "write_in_background", "compile", "cache", "track", "peak_tflops", "profile",
    )
)  # and everything about the engine


def main(argv: Sequence[str]) -> int:
    options = command("train", "Train a model. Further options are those of the config: see `ocl train --print_config`.")
    options.add_argument("--run", type=Path, help="folder to write into; made if it is not there")
    options.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    add_device(options)
    known, words = options.parse_known_args(argv)
    if known.resume and known.run is not None and not any(word.startswith("--config") for word in words):
        words = ["--config", str(known.run / CONFIG), *words]
    experiment = experiments.read(words, prog="ocl train", packages=known.packages)
    if known.run is None:
        raise ConfigError("ocl train needs --run FOLDER, the folder to write checkpoints, logs and panels into.")
    outcome = train(experiment, known.run, resume=known.resume, on=known.device)
    if os.environ.get("RANK", "0") == "0":
        print(f"{outcome.checkpoint}: {outcome.step} steps, {outcome.samples} samples")
    return 0 if outcome.stopped_by is None else 130


def train(experiment: Experiment, run: Path, *, resume: bool = False, on: str = "auto") -> Outcome:
    """Train into `run`, scoring held-out images on the way. Raises CheckpointError where `run` belongs to another config.

    Raises ConfigError or MissingExtra before any weight is loaded where the options cannot work here.
    """
    training, losses, setup = experiment.training, experiment.losses(), experiment.engine()
    check_installed(training.track)
    newest = latest(run) if resume else None
    starts_from = training.start_from if newest is None else None
    if starts_from is not None and not starts_from.is_file():
        raise ConfigError(f"training.start_from={starts_from} is not a file; pass a model.safetensors of a checkpoint, or null.")
    place = setup.start(training, device(on))
    world = place.world
    check_losses(losses, training, world)
    data = world.together(experiment.data)
    with nullcontext() if newest is None else restoring():
        cache = world.together(lambda: open_cache(experiment, data))
        model = world.together(lambda: experiment.model(postpone=cache is not None))
    if cache is not None:
        world.together(partial(check_state, cache, model))
    if starts_from is not None:
        world.together(partial(fill, model, starts_from, training.start_parts))
    world.first(lambda: claim(run, experiment.text, resume=resume))
    if newest is not None and awaited(model):
        world.together(lambda: load_model(newest, model, ema=False))
    outcome = fit(
        setup.build(model, training, place),
        losses,
        lambda start: batches(
            data, batch_size=training.batch_size, seed=training.seed, start=start, workers=training.workers, flip=training.flip,
            cache=cache, timeout=training.data_timeout, rank=world.rank, size=world.size,
        ),
        training,
        run=run,
        evaluate=held_out_evaluation(experiment, run, place.device),
        resume=resume,
    )  # fmt: skip
    world.leave()
    return outcome


def claim(run: Path, text: str, *, resume: bool) -> None:
    """Write the resolved config into a new run, or see that it is the one the run was started with."""
    path = run / CONFIG
    if path.exists() and not resume:
        raise CheckpointError(f"{run} already holds a run; pass --resume to go on with it, or another --run folder.")
    if path.exists():
        stored = path.read_text()
        if stored != text:  # this version may know more options than the one that wrote it
            stored = experiments.read(["--config", str(path)], prog="ocl train").text
        found = {name for name, *_ in changes(yaml.safe_load(stored), yaml.safe_load(text))} - FREE_TO_CHANGE
        changed = sorted(name for name in found if name.partition(".")[0] != "engine")
        if changed:
            raise CheckpointError(
                f"{run} was started with another config: {', '.join(changed[:5])} differ; "
                f"resume with {path}, or start a new run."
            )
    run.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
