"""The engine for many processes: DeepSpeed (Rasley et al. 2020) with ZeRO (Rajbhandari et al. 2020) over the trained weights.

DeepSpeed is given the modules that hold trained weights and nothing else: frozen encoders, autoencoders and denoisers stay whole
in every process and never reach its hooks, partitions or checkpoints.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ocl.errors import ConfigError, MissingExtra
from ocl.nn.freezing import trainable_state_dict
from ocl.train import deepspeed_config, optimizer
from ocl.train.checkpoint import AVERAGE, MODEL, Snapshot, fill
from ocl.train.compiling import compiled
from ocl.train.engine import Engine, autocast, check_average, placed, trained_parameters
from ocl.train.files import read_tensors
from ocl.train.loss_scale import LossScale
from ocl.train.moments import Moments, check_names, file_name, piece_name
from ocl.train.options import Training
from ocl.train.partition import Average, Piece, pieces
from ocl.train.units import Units, hook_dataclasses
from ocl.train.world import World
from ocl.types import Batch


@final
class DeepSpeedEngine(Engine):
    """One of the processes of a run. config: the content of a file as in configs/deepspeed, already checked.

    Raises MissingExtra where deepspeed is not installed, ConfigError where the model cannot be trained by several processes.
    """

    def __init__(
        self, model: nn.Module, training: Training, *, world: World, device: torch.device | str, config: Mapping[str, Any]
    ) -> None:
        try:
            import deepspeed
        except ImportError as error:
            raise MissingExtra("runs on several processes", "deepspeed", "deepspeed") from error
        deepspeed.utils.logger.setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", ".torch.distributed.* is deprecated", FutureWarning)  # calls of deepspeed's, not ours
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled now, and waits for dead processes
        self.device, self.world, self._training = torch.device(device), world, training
        self._plain = model.to(self.device)
        self._trained = trained_parameters(model)
        _check_statistics(model, world)
        if training.channels_last:
            _to_channels_last(model, self._trained)
        self._plain.train()
        numbers = [value.numel() for value in self._trained.values()]
        settings = deepspeed_config.complete(config, training, size=world.size, trained=numbers)
        self._stage: int = settings["zero_optimization"]["stage"]
        _check_checkpointing(model, self._stage)
        deepspeed.init_distributed("nccl" if self.device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
        self._units = Units(model, compiled(model, training.compile), self.autocast)
        self._engine: Any = deepspeed.initialize(
            model=self._units, optimizer=optimizer.build(self._trained, training.optimizer), config=settings
        )[0]
        world.limit_waiting()  # in the groups that DeepSpeed made too
        if self._stage == 3:
            hook_dataclasses(self._units)
        self._scale = LossScale(enabled=training.precision == "fp16")
        self.skips_overflow = training.precision == "fp16"
        self._average = None if training.ema is None else Average(self._trained, training.ema, world)

    def model(self, *args: Any, **options: Any) -> Any:
        """The model's own output, through DeepSpeed's hooks."""
        with torch.autocast(self.device.type, enabled=False):  # DeepSpeed would end ours; Units begins it again, inside
            tensors = self._engine(*args, **options)
        return self._units.assemble(tensors)

    def place(self, batch: Batch) -> Batch:
        return placed(batch, self._training, self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self._training, self.device)

    def backward(self, loss: Tensor) -> None:
        if self._stage:
            self._engine.optimizer.loss_scale = self._scale.value  # DeepSpeed multiplies the loss, and divides before clipping
            self._engine.backward(loss)
        else:
            self._engine.backward(loss * self._scale.value)
        last = self._engine.is_gradient_accumulation_boundary()
        if not last:
            self._engine.step()  # counts the pass

    def step(self, lr: float) -> Tensor:
        optimizer.set_rate(self._engine.optimizer, lr)
        norm = self._step_zero() if self._stage else self._step_plain()
        self._scale.update(finite=math.isfinite(norm))
        if self._average is not None:
            self._average.update()
        return torch.tensor(norm, device=self.device)

    def _step_zero(self) -> float:
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return math.inf if norm < 0 else norm

    def _step_plain(self) -> float:
        """Stage 0: gradients are whole and already averaged over processes."""
        found = [value.grad for value in self._trained.values() if value.grad is not None]
        torch._foreach_div_(found, self._scale.value)
        norm = nn.utils.get_total_norm(found)
        if not torch.isfinite(norm):
            for value in self._trained.values():
                value.grad = None  # AdamW leaves weights without a gradient alone
        elif self._training.clip is not None:
            nn.utils.clip_grads_with_norm_(self._trained.values(), self._training.clip, norm)
        self._engine.step()
        return norm.item()

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        averaged = None if self._average is None else self._average.whole()
        before = {name: value.detach().clone() for name, value in self._trained.items()} if averaged and self._stage < 3 else {}
        self._plain.eval()
        try:
            with self._gathered(), torch.no_grad():
                _copy_into(self._trained, averaged or {})
                yield self._plain
        finally:
            with torch.no_grad():
                _copy_into(self._trained, before)  # stage 3 keeps its own copy
            self._plain.train()

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Inside, trained weights are whole and stage 3 has no hooks, so that each process may run the model as it likes."""
        if self._stage < 3:
            yield
            return
        import deepspeed

        offload = self._engine.optimizer.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self._trained.values())):
            for hook in (*offload.forward_hooks, *offload.backward_hooks):
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload._register_deepspeed_module(offload.module)

    def snapshot(self, *, copy: bool = False) -> Snapshot:
        files: dict[str, Mapping[str, Tensor]] = {}
        averaged = None if self._average is None else self._average.whole()
        with self._gathered():
            if self.world.is_first:
                weights = trainable_state_dict(self._plain)
                files[MODEL] = _held(weights) if copy or self._stage == 3 else weights
                if averaged is not None:
                    files[AVERAGE] = _held({**weights, **averaged}) if copy or self._stage == 3 else {**weights, **averaged}
        moments = self._moments()
        files[file_name(self.world.rank, self.world.size)] = _held(moments) if copy else moments
        return Snapshot(files, {"scaler": self._scale.state()})

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        check_average(folder, self._average is not None)
        saved = Moments(folder)
        check_names(saved.names, self._trained)
        if self._average is not None:
            self._average.load(read_tensors(folder / AVERAGE))
        self._fill(folder)
        base = self._base_optimizer()
        for piece in self._pieces():
            self._load_piece(base, piece, saved)
        self._scale.load(state["scaler"])

    def _fill(self, folder: Path) -> None:
        if self._stage < 3:
            fill(self._plain, folder / MODEL)
            if self._stage:
                self._engine.optimizer.refresh_fp32_params()
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self._trained.values()), modifier_rank=0):
            fill(self._plain, folder / MODEL)
            whole = {name: value.detach().clone() for name, value in self._trained.items()}
        for name, value in whole.items():
            deepspeed.utils.safe_set_full_fp32_param(self._trained[name], value)

    def _moments(self) -> dict[str, Tensor]:
        """The optimizer state that this process writes, by the names of `ocl.train.moments`."""
        base, found = self._base_optimizer(), {}
        for index, piece in enumerate(self._pieces()):
            state = base.state.get(piece.flat, {})
            if not state or (self._stage == 0 and index % self.world.size != self.world.rank):
                continue
            whole: Any = self._trained[piece.name]
            shape = whole.ds_shape if self._stage == 3 else whole.shape
            for moment in ("exp_avg", "exp_avg_sq"):
                key = piece_name(f"{piece.name}.{moment}", piece.start, piece.count, math.prod(shape))
                values = state[moment].flatten()[piece.offset : piece.offset + piece.count]
                found[key] = values if "@" in key else values.view(shape)
            if piece.start == 0:
                found[f"{piece.name}.step"] = torch.as_tensor(float(state["step"]))
        return found

    def _load_piece(self, base: torch.optim.Optimizer, piece: Piece, saved: Moments) -> None:
        if f"{piece.name}.exp_avg" not in saved.names:
            return
        state = base.state[piece.flat]
        if not state:
            state |= {"step": torch.tensor(0.0)}
            state |= {moment: torch.zeros_like(piece.flat) for moment in ("exp_avg", "exp_avg_sq")}
        state["step"] = saved.whole(f"{piece.name}.step", ())
        for moment in ("exp_avg", "exp_avg_sq"):
            values = saved.piece(f"{piece.name}.{moment}", piece.start, piece.start + piece.count)
            state[moment].view(-1)[piece.offset : piece.offset + piece.count].copy_(values)

    def _pieces(self) -> list[Piece]:
        return pieces(self._engine.optimizer, self._trained, self._stage, self.world)

    def _base_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer.optimizer if self._stage else self._engine.optimizer


def _check_checkpointing(model: nn.Module, stage: int) -> None:
    """Raises ConfigError for selective checkpointing at stage 3: weights that are fetched again are unknown to torch's record."""
    if stage == 3 and any(getattr(part, "checkpointing", None) == "selective" for part in model.modules()):
        raise ConfigError("checkpointing: selective does not work with ZeRO stage 3; set it to true, or use stage 0, 1 or 2.")


def _check_statistics(model: nn.Module, world: World) -> None:
    if world.size == 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and module.training:
            raise ConfigError(
                f"{name} is a BatchNorm in training: each of {world.size} processes would see other statistics; freeze it, or use "
                "GroupNorm or LayerNorm."
            )


def _to_channels_last(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for value in trained.values():
        value.data = value.data.contiguous()  # DeepSpeed keeps trained weights in one flat array


def _copy_into(trained: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        trained[name].copy_(value)


def _held(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in main memory, which stay as they are."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
