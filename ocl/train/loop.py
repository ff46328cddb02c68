"""The training loop: from an engine and a stream of batches to a run folder; it may be killed at any moment and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ocl.errors import CheckpointError, ConfigError, DataError, RangeError
from ocl.interfaces import Loss
from ocl.train import checkpoint, health
from ocl.train.engine import Engine
from ocl.train.health import Monitor
from ocl.train.interrupt import StopRequest
from ocl.train.log import Display, Journal
from ocl.train.meter import Meter
from ocl.train.options import Training
from ocl.train.schedule import factor
from ocl.train.seeding import seed_globals, step_generator
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
    uninterrupted run reaches: every random draw follows from (training.seed, step), the data from the samples consumed.
    SIGINT and SIGTERM finish the step, write a checkpoint and return.
    Raises CheckpointError if `run` holds checkpoints and `resume` is false, if one is damaged or belongs to another model,
    or if the disk is full; RangeError if a loss is not finite. The last good checkpoint stays intact in each case.
    """
    _check(losses, engine)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.clean(run)
    step, samples, saved = _resume(engine, training, run) if resume else _start(run)
    meter, monitor = Meter(skips_overflow=engine.skips_overflow), Monitor()

    with StopRequest() as stop, Journal(run, step=step) as journal, Display(step=step, steps=training.steps) as display:
        if saved is None:
            saved = _save(engine, training, run, step, samples)
        else:
            display.say(f"resumed from {saved}: {step} steps made, {samples} samples consumed")
        stream = batches(samples)
        meter.restart()
        stopping = False
        while step < training.steps and not stopping:
            output, consumed = _update(engine, losses, stream, training, step, meter)
            step, samples = step + 1, samples + consumed
            display.step(step)

            asked = stop.signal_name is not None  # read once: a later signal ends the next step, not this one without a save
            stopping = asked and step < training.steps  # a run that is done is done
            save_due = stopping or _due(step, training.checkpoint_every, training)
            evaluation_due = not stopping and _due(step, training.eval_every, training)
            if not (save_due or evaluation_due or step % training.log_every == 0):
                continue
            line = {"lr": _rate(training, step - 1), "samples": samples, **_summary(meter, saved)}
            gauges = health.gauges(output.slots)
            line |= {f"health/{name}": value for name, value in gauges.items()}
            if evaluate is not None and evaluation_due:
                with engine.evaluating() as model:
                    line |= {f"eval/{name}": value for name, value in evaluate(model, step).items()}
            journal.write(step, line)
            display.line(step, line)
            if step > training.schedule.warmup_steps + training.steps // 20:  # slots of a new model are all alike
                for warning in monitor.read(gauges):
                    display.say(warning)
            if save_due:
                saved = _save(engine, training, run, step, samples)
            meter.restart()
        if stopping:
            display.say(f"{stop.signal_name}: stopped after step {step}, saved {saved}; resume to go on from here")
    return Outcome(step, samples, saved, stop.signal_name if stopping else None)


def _update(
    engine: Engine, losses: Sequence[Loss], stream: Iterator[Batch], training: Training, step: int, meter: Meter
) -> tuple[Output, int]:
    """Update number `step`: `accumulate` passes, then one optimizer step. Returns the last pass and the samples consumed."""
    seed_globals(training.seed, step)
    generator = step_generator(training.seed, step, engine.device)
    consumed, asked = 0, _asked(losses, step)
    for _ in range(training.accumulate):
        with meter.waiting():
            batch = engine.place(_next(stream, step))
        with engine.autocast():
            output: Output = engine.model(batch, generator=generator, **asked)
            values = [loss(Step(batch, output, step)) for loss in losses]
        engine.backward(torch.stack(values).sum())
        meter.add_pass(dict(zip(_names(losses), values, strict=True)), batch.keys, len(batch))
        consumed += len(batch)
    meter.add_step(step, engine.step(_rate(training, step)))
    return output, consumed


def _asked(losses: Sequence[Loss], step: int) -> dict[str, Mismatch]:
    """What losses ask of the model beyond the plain pass, as keyword arguments of its forward."""
    found = [mismatch for loss in losses if (mismatch := loss.mismatch(step)) is not None]
    if len(found) > 1:
        raise ConfigError("two losses ask for slots of other images, and one pass decodes one mixture; keep one of them.")
    return {"mismatch": found[0]} if found else {}


def _summary(meter: Meter, saved: Path) -> dict[str, float]:
    """The meter's numbers by their names in the log."""
    try:
        summary = meter.summarize()
    except RangeError as error:
        raise RangeError(f"{error} {saved}, which is intact.") from error
    line = {name: value for name, value in vars(summary).items() if name != "losses"}
    if len(summary.losses) > 1:
        line |= {f"loss/{name}": value for name, value in summary.losses.items()}
    return line


def _start(run: Path) -> tuple[int, int, None]:
    newest = checkpoint.latest(run)
    if newest is not None:
        raise CheckpointError(f"{run} already holds {newest.name}; resume this run, or choose another run folder.")
    return 0, 0, None


def _resume(engine: Engine, training: Training, run: Path) -> tuple[int, int, Path | None]:
    newest = checkpoint.latest(run)
    if newest is None:
        return _start(run)
    found = checkpoint.load(newest)
    if found.seed != training.seed:
        raise CheckpointError(f"{newest} has training.seed={found.seed}, got {training.seed}; resume with the seed it had.")
    engine.load(newest, found.engine)
    return found.step, found.samples, newest


def _save(engine: Engine, training: Training, run: Path, step: int, samples: int) -> Path:
    return checkpoint.save(run, engine.save, step=step, samples=samples, seed=training.seed, keep=training.keep_checkpoints)


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


def _check(losses: Sequence[Loss], engine: Engine) -> None:
    if not losses:
        raise ConfigError("training needs at least one loss, got none; pass losses=[Reconstruction()].")
    for loss in losses:
        if any(parameter.requires_grad for parameter in loss.parameters()):
            raise ConfigError(f"{type(loss).__name__} has trainable parameters that no optimizer sees; put them in the model.")
        loss.to(engine.device)
