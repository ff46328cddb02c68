"""The training loop: from an engine and a stream of batches to a run folder; it may be killed at any moment and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ocl.data.order import share
from ocl.errors import CheckpointError, ConfigError, DataError, RangeError
from ocl.interfaces import Loss
from ocl.train import checkpoint, health
from ocl.train.engine import Engine
from ocl.train.health import Monitor
from ocl.train.interrupt import StopRequest
from ocl.train.log import Display, Journal
from ocl.train.meter import Meter
from ocl.train.options import Training
from ocl.train.profile import Flops, Trace
from ocl.train.saver import Saver
from ocl.train.schedule import factor
from ocl.train.seeding import sample_generators, seed_globals
from ocl.train.world import World
from ocl.types import Batch, Mismatch, Output, Step

Stream = Callable[[int], Iterator[Batch]]
"""Samples consumed so far -> the endless batches that follow; a pure function, so that a resumed run reads on where it was."""

Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""(model in eval mode with its averaged weights, updates made) -> named scores; may write pictures into the run folder."""


@dataclass(frozen=True)
class Outcome:
    """Where training ended: all `steps`, or early because of the signal named in `stopped_by`."""

    step: int
    samples: int
    checkpoint: Path
    stopped_by: str | None = None


def fit(
    engine: Engine, losses: Sequence[Loss], batches: Stream, training: Training, *,
    run: Path, evaluate: Evaluate | None = None, resume: bool = False,
) -> Outcome:  # fmt: skip
    """Minimise the sum of `losses` for `training.steps` updates; write checkpoints, log.jsonl and tensorboard/ into `run`.

    With `resume`, continue from the newest checkpoint of `run` (or start, if there is none) to the very weights that an
    uninterrupted run reaches: random draws follow from training.seed and the number of the sample, data from the samples consumed.
    SIGINT and SIGTERM finish the step, write a checkpoint and return.
    On several processes (engine.world) each call of `batches` gives that process its share of a batch
    (`ocl.data.order.share`); process 0 writes, and evaluates while the others wait.
    Raises CheckpointError if `run` holds checkpoints and `resume` is false, if one is damaged or belongs to another model,
    or if the disk is full; RangeError if a loss is not finite. The last good checkpoint stays intact in each case.
    """
    world = engine.world
    check_losses(losses, training, world)
    for loss in losses:
        loss.to(engine.device)
    world.first(lambda: _make(run))
    world.together(lambda: _see(run))
    step, samples, saved = _resume(engine, training, run) if resume else _start(run)
    meter, monitor = Meter(skips_overflow=engine.skips_overflow, device=engine.device, world=world), Monitor()
    saver, trace = Saver(engine, training, run, saved), Trace(run, world.rank, training.profile, engine.device)

    with (
        StopRequest() as stop, world.talking(),
        Journal(run, step=step, track=training.track) if world.is_first else nullcontext() as journal,
        Display(step=step, steps=training.steps, quiet=not world.is_first) as display,
    ):  # fmt: skip
        if saved is None:
            saver.save(step, samples)
        else:
            display.say(f"resumed from {saved}: {step} steps made, {samples} samples consumed")
        stream = batches(samples)
        flops = Flops(training.peak_tflops, world)
        meter.restart()
        stopping = False
        while step < training.steps and not stopping:
            with flops.counting(tuple(_asked(losses, step).values())), trace.update():
                output, consumed = _update(engine, losses, stream, training, step, samples, meter)
            step, samples = step + 1, samples + consumed
            display.step(step)

            # read once: a later signal ends the next step, not this one without a save
            asked, writing = world.any(stop.signal_name is not None, saver.busy)
            stopping = asked and step < training.steps  # a run that is done is done
            if saver.pending and not writing:
                saver.settle()
            save_due = stopping or _due(step, training.checkpoint_every, training)
            evaluation_due = not stopping and _due(step, training.eval_every, training)
            if not (save_due or evaluation_due or step % training.log_every == 0):
                continue
            line = {"lr": _rate(training, step - 1), "samples": samples, **_summary(meter, flops, saver.last)}
            gauges = health.gauges(output.slots)
            line |= {f"health/{name}": value for name, value in gauges.items()}
            if evaluate is not None and evaluation_due:
                with engine.evaluating() as model:
                    scores = world.first(partial(evaluate, model, step))
                line |= {f"eval/{name}": value for name, value in scores.items()}
            world.first(partial(_write, journal, step, line))
            display.line(step, line)
            if step > training.schedule.warmup_steps + training.steps // 20:  # slots of a new model are all alike
                for warning in monitor.read(gauges):
                    display.say(warning)
            if save_due:
                saver.save(step, samples)
            meter.restart()
        saver.settle()
        remark = trace.finish()
        if remark is not None:
            display.say(remark)
        assert saver.last is not None
        if stopping:
            name = next(filter(None, world.gather(stop.signal_name)))
            display.say(f"{name}: stopped after step {step}, saved {saver.last}; resume to go on from here")
    return Outcome(step, samples, saver.last, name if stopping else None)


def _update(
    engine: Engine, losses: Sequence[Loss], stream: Iterator[Batch], training: Training, step: int, samples: int, meter: Meter
) -> tuple[Output, int]:  # fmt: skip
    """Update number `step`: `accumulate` passes, then one optimizer step. Returns the last pass and the samples consumed.

    samples: how many were consumed before, by all processes together.
    """
    world = engine.world
    seed_globals(training.seed, step, world.rank)
    first, asked = samples, _asked(losses, step)
    for _ in range(training.accumulate):
        with meter.waiting():
            batch = engine.place(_next(stream, step))
        total = len(batch) * world.size
        numbers = [first + place for place in share(total, world.rank, world.size)]
        generators = sample_generators(training.seed, numbers, engine.device)
        with meter.passing(), engine.autocast():
            output: Output = engine.model(batch, generator=generators, **asked)
            values = [loss(Step(batch, output, step)) for loss in losses]
        engine.backward(torch.stack(values).sum())
        meter.add_pass(dict(zip(_names(losses), values, strict=True)), batch.keys, len(batch))
        first += total
    meter.add_step(step, engine.step(_rate(training, step)))
    return output, first - samples


def _asked(losses: Sequence[Loss], step: int) -> dict[str, Mismatch]:
    """What losses ask of the model beyond the plain pass, as keyword arguments of its forward."""
    found = [mismatch for loss in losses if (mismatch := loss.mismatch(step)) is not None]
    if len(found) > 1:
        raise ConfigError("two losses ask for slots of other images, and one pass decodes one mixture; keep one of them.")
    return {"mismatch": found[0]} if found else {}


def _summary(meter: Meter, flops: Flops, saved: Path | None) -> dict[str, float]:
    """The meter's numbers by their names in the log."""
    try:
        summary = meter.summarize()
    except RangeError as error:
        raise RangeError(f"{error} {saved or 'nothing: no checkpoint was complete yet'}, which is intact.") from error
    line = {name: value for name, value in vars(summary).items() if name not in ("losses", "seconds") and value is not None}
    if len(summary.losses) > 1:
        line |= {f"loss/{name}": value for name, value in summary.losses.items()}
    return line | flops.rates(summary)


def _write(journal: Journal | None, step: int, line: Mapping[str, float]) -> None:
    if journal is not None:
        journal.write(step, line)


def _make(run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.clean(run)


def _see(run: Path) -> None:
    if not run.is_dir():
        raise ConfigError(f"{run} was made by process 0 and is not visible here; use a folder on a file system that all share.")


def _start(run: Path) -> tuple[int, int, None]:
    newest = checkpoint.latest(run)
    if newest is not None:
        raise CheckpointError(f"{run} already holds {newest.name}; resume this run, or choose another run folder.")
    return 0, 0, None


def _resume(engine: Engine, training: Training, run: Path) -> tuple[int, int, Path | None]:
    newest = checkpoint.latest(run)
    if newest is None:
        return _start(run)
    world = engine.world
    found = world.together(lambda: checkpoint.load(newest, rank=world.rank, size=world.size))
    if found.seed != training.seed:
        raise CheckpointError(f"{newest} has training.seed={found.seed}, got {training.seed}; resume with the seed it had.")
    world.together(lambda: engine.load(newest, found.engine))
    return found.step, found.samples, newest


def _next(stream: Iterator[Batch], step: int) -> Batch:
    batch = next(stream, None)
    if batch is None:
        raise DataError(f"training needs endless batches, but they ended at step {step}; use ocl.data.loader.batches.")
    return batch


def _rate(training: Training, step: int) -> float:
    return training.optimizer.lr * factor(training.schedule, step, training.steps)


def _due(step: int, every: int, training: Training) -> bool:
    return every > 0 and (step % every == 0 or step == training.steps)


def _names(losses: Sequence[Loss]) -> list[str]:
    kinds = [type(loss).__name__ for loss in losses]
    return [kind if kinds.count(kind) == 1 else f"{kind}{index}" for index, kind in enumerate(kinds)]


def check_losses(losses: Sequence[Loss], training: Training, world: World) -> None:
    """Raises ConfigError where losses cannot be minimised by this many processes. Needs no model."""
    if not losses:
        raise ConfigError("training needs at least one loss, got none; pass losses=[Reconstruction()].")
    own = len(share(training.batch_size, world.rank, world.size))
    for loss in losses:
        name, mismatch = type(loss).__name__, loss.mismatch(0)
        if any(parameter.requires_grad for parameter in loss.parameters()):
            raise ConfigError(f"{name} has trainable parameters that no optimizer sees; put them in the model.")
        if mismatch is None or world.size == 1:
            continue
        if mismatch.pairing == "ring":
            raise ConfigError(f"{name}: pairing=ring pairs images of all {world.size} processes; pass pairing=halves, or use one.")
        if own % 2:
            raise ConfigError(
                f"{name} pairs images within a process, so the share of each must be even, got training.batch_size="
                f"{training.batch_size} on {world.size} processes; choose a multiple of {2 * world.size}."
            )
