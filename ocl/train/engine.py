"""What the loop needs from whatever owns weights, gradients and optimizer: one small interface, and it on one device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ocl.errors import CheckpointError, ConfigError
from ocl.nn.freezing import trainable_state_dict
from ocl.train import optimizer
from ocl.train.checkpoint import AVERAGE, MODEL, Snapshot, fill
from ocl.train.compiling import compiled
from ocl.train.ema import MovingAverage
from ocl.train.moments import Moments, file_name
from ocl.train.options import Training
from ocl.train.world import World
from ocl.types import Batch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine(ABC):
    """Owns the weights, their gradients and the optimizer. The loop calls, for every update:

    `place` and `model(batch)` inside `autocast`, then `backward(loss)`, `training.accumulate` times; then `step(lr)` once.
    Where the run has several processes, each sees its share of the batch, `loss` is the mean over that share, and the weights
    after `step` are the same in all of them. Every method but `place` and `autocast` is called by all, in the same order.
    """

    model: Callable[..., Any]  # what the loop calls; may be wrapped or compiled
    device: torch.device
    world: World = World()
    skips_overflow: bool = False  # a step whose gradient is not finite changes nothing (fp16 loss scaling)

    @abstractmethod
    def place(self, batch: Batch) -> Batch:
        """The batch where and how the model wants it (device, memory layout)."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, forward passes run in the precision of the run."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of loss / accumulate."""

    @abstractmethod
    def step(self, lr: float) -> Tensor:
        """One update at this learning rate. Returns the gradient norm before clipping, a detached scalar on `device`."""

    @abstractmethod
    def evaluating(self) -> AbstractContextManager[nn.Module]:
        """Inside, the plain model in eval mode without gradients, holding its averaged weights where the run keeps them."""

    @abstractmethod
    def snapshot(self, *, copy: bool = False) -> Snapshot:
        """What this process has to write. With `copy` it stays as it is while training goes on."""

    @abstractmethod
    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Take over what any engine's `snapshot` wrote. Raises CheckpointError if it belongs to another model or configuration."""


@final
class LocalEngine(Engine):
    """One process, one device: autocast, loss scaling, clipping, accumulation and a moving average in plain PyTorch.

    Only parameters that require a gradient when the engine is made reach the optimizer. The model is moved to `device`.
    """

    def __init__(self, model: nn.Module, training: Training, *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._plain = model.to(self.device)
        if training.channels_last:
            self._plain = self._plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = compiled(self._plain, training.compile)
        self._training = training
        self._trained = trained_parameters(model)
        self._optimizer = optimizer.build(self._trained, training.optimizer)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=training.precision == "fp16")
        self._average = None if training.ema is None else MovingAverage(self._plain, training.ema)
        self.skips_overflow = training.precision == "fp16"
        self._plain.train()

    def place(self, batch: Batch) -> Batch:
        return placed(batch, self._training, self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self._training, self.device)

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss / self._training.accumulate).backward()

    def step(self, lr: float) -> Tensor:
        optimizer.set_rate(self._optimizer, lr)
        self._scaler.unscale_(self._optimizer)
        parameters = [value for value in self._trained.values() if value.grad is not None]
        norm = nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])
        if self._training.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._training.clip, norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self._plain)
        return norm.detach()

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        averaged = self._average.applied(self._plain) if self._average is not None else nullcontext()
        self._plain.eval()
        try:
            with averaged, torch.no_grad():
                yield self._plain
        finally:
            self._plain.train()

    def snapshot(self, *, copy: bool = False) -> Snapshot:
        files = {
            MODEL: trainable_state_dict(self._plain),
            file_name(0, 1): optimizer.state(self._optimizer, self._trained),
        }
        if self._average is not None:
            files[AVERAGE] = self._average.average
        if copy:
            files = {name: {key: value.detach().cpu().clone() for key, value in file.items()} for name, file in files.items()}
        return Snapshot(files, {"scaler": self._scaler.state_dict()})

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        check_average(folder, self._average is not None)
        if self._average is not None:
            fill(self._plain, folder / AVERAGE)
            self._average = MovingAverage(self._plain, self._average.decay)
        fill(self._plain, folder / MODEL)
        moments = Moments(folder)
        tensors = {key: moments.whole(key, _shape(self._trained, key)) for key in moments.names}
        optimizer.load_state(self._optimizer, self._trained, tensors)
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(dict(state["scaler"]))


def placed(batch: Batch, training: Training, device: torch.device) -> Batch:
    """The batch on the device, its images in the layout of the run."""
    batch = batch.to(device, non_blocking=True)
    if not training.channels_last:
        return batch
    return replace(batch, image=batch.image.contiguous(memory_format=torch.channels_last))


def autocast(training: Training, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, operations run in the precision of the run."""
    dtype = DTYPES.get(training.precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter that requires a gradient. Raises ConfigError where there is none."""
    found = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not found:
        raise ConfigError("training needs a parameter that requires a gradient, the model has none; unfreeze a part of it.")
    return found


def check_average(folder: Path, averages: bool) -> None:
    """Raises CheckpointError where a checkpoint holds an average of the weights and the run keeps none, or the reverse."""
    has_average = (folder / AVERAGE).exists()
    if has_average != averages:
        found, way_out = ("an", "training.ema=0.999") if has_average else ("no", "training.ema=null")
        raise CheckpointError(f"{folder} holds {found} average of the weights, unlike this run; resume with {way_out}.")


def _shape(trained: Mapping[str, nn.Parameter], key: str) -> Sequence[int]:
    name, _, moment = key.rpartition(".")
    return () if moment == "step" or name not in trained else trained[name].shape
