"""One stage into a run folder: checkpoints, log and way to stop as of `ocl.train.fit`, for a module whose output is the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from ocl.data.order import Order
from ocl.train import checkpoint
from ocl.train.engine import LocalEngine
from ocl.train.interrupt import StopRequest
from ocl.train.log import Display, Journal
from ocl.train.meter import Meter
from ocl.train.options import Training
from ocl.train.saver import Saver
from ocl.train.schedule import factor
from ocl.train.seeding import sample_generators, seed_globals

Pick = Callable[[Sequence[int]], tuple[Tensor, ...]]
"""Numbers of samples -> the tensors that the stage takes, on any device."""


def fit_stage(stage: nn.Module, pick: Pick, length: int, training: Training, *, run: Path, device: str) -> str | None:
    """Train `stage(*tensors, generators) -> loss` on `length` samples; goes on from what `run` holds.

    The stage ends with its averaged weights where training.ema asks for them. Returns the name of the signal that stopped it
    early, after its state was saved. Raises what `ocl.train.fit` raises.
    """
    engine = LocalEngine(stage, training, device=device)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.clean(run)
    step, saved = 0, checkpoint.latest(run)
    if saved is not None:
        found = checkpoint.load(saved)
        engine.load(saved, found.engine)
        step = found.step
    order, saver = Order(length, training.seed), Saver(engine, training, run, saved)
    meter = Meter(skips_overflow=engine.skips_overflow, device=engine.device, world=engine.world)
    with StopRequest() as stop, Journal(run, step=step) as journal, Display(step=step, steps=training.steps) as display:
        meter.restart()
        while step < training.steps:
            first = step * training.batch_size
            seed_globals(training.seed, step)
            numbers = range(first, first + training.batch_size)
            indices = [order.index(number) for number in numbers]
            tensors = [tensor.to(engine.device) for tensor in pick(indices)]
            with engine.autocast():
                loss = engine.model(*tensors, sample_generators(training.seed, numbers, engine.device))
            engine.backward(loss)
            rate = training.optimizer.lr * factor(training.schedule, step, training.steps)
            meter.add_pass({"loss": loss}, (), len(indices))
            meter.add_step(step, engine.step(rate))
            step += 1
            display.step(step)
            asked = stop.signal_name is not None
            save = asked or step % training.checkpoint_every == 0 or step == training.steps
            if save or step % training.log_every == 0:
                told = vars(meter.summarize()).items()
                line = {name: value for name, value in told if name != "losses" and value is not None}
                journal.write(step, {"lr": rate, **line})
                display.line(step, line)
                meter.restart()
            if save:
                saver.save(step, step * training.batch_size)
            if asked and step < training.steps:
                saver.settle()
                display.say(f"{stop.signal_name}: stopped after step {step}; the same command goes on from here")
                return stop.signal_name
        saver.settle()
    assert saver.last is not None
    checkpoint.load_model(saver.last, stage)
    return None
