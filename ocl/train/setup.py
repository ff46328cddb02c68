"""What `engine:` in a config names: how the processes of a run start, and which engine each of them trains with."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from ocl.errors import ConfigError, MissingExtra
from ocl.train import deepspeed_config
from ocl.train.engine import Engine, LocalEngine
from ocl.train.launch import read_launcher, start
from ocl.train.options import Training
from ocl.train.world import World

# not SLURM_NTASKS: in an allocation without srun that is the number of tasks it has room for
_STARTED = {"WORLD_SIZE": "without a launcher", "SLURM_STEP_NUM_TASKS": "srun --ntasks 1"}


def refuse_several(what: str, otherwise: str = "") -> None:
    """ConfigError where a launcher has started several processes of what is meant to be one."""
    for variable, one in _STARTED.items():
        size = os.environ.get(variable) or "1"
        if size != "1":
            raise ConfigError(f"{size} processes were started, but {what} is one; {otherwise}start one ({one}).")


@dataclass(frozen=True)
class Place:
    """Where a process trains: among which processes, and on which device."""

    world: World
    device: torch.device


class EngineSetup(ABC):
    """Chooses an engine. `start` is called before any weight is loaded, and raises ConfigError for all that cannot work."""

    @abstractmethod
    def start(self, training: Training, device: torch.device) -> Place:
        """Check the options and meet the other processes. device: that of a run on one process."""

    @abstractmethod
    def build(self, model: nn.Module, training: Training, place: Place) -> Engine:
        """The engine around a model that was just built."""


@final
class Local(EngineSetup):
    """One process on one device, in plain PyTorch."""

    def start(self, training: Training, device: torch.device) -> Place:
        refuse_several("engine Local", "pass --engine DeepSpeed, or ")
        return Place(World(), device)

    def build(self, model: nn.Module, training: Training, place: Place) -> Engine:
        return LocalEngine(model, training, device=place.device)


@final
class DeepSpeed(EngineSetup):
    """Any number of processes, started by torchrun, deepspeed or srun; see docs/scale.md.

    Args:
        config: a JSON file such as configs/deepspeed/zero2.json; null keeps all weights and moments in every process (stage 0).
        timeout: seconds that a process waits for another, evaluation by the first one included, before the run ends.
    """

    def __init__(self, *, config: Path | None = None, timeout: float = 3600.0) -> None:
        if not timeout > 0:
            raise ConfigError(f"engine.timeout must be positive, got {timeout}.")
        self.config, self.timeout = config, timeout

    def start(self, training: Training, device: torch.device) -> Place:
        content, launch = self._content(), read_launcher()
        kind, name = device.type, str(self.config or "engine DeepSpeed")
        deepspeed_config.check(content, training, device=kind, size=launch.size, name=name)
        if find_spec("deepspeed") is None:
            raise MissingExtra("runs on several processes", "deepspeed", "deepspeed")
        if kind == "cuda":
            if launch.local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"process {launch.local_rank} of this machine has no GPU of its own, {torch.cuda.device_count()} are visible; "
                    "start as many processes as there are GPUs, or pass --device cpu."
                )
            device = torch.device("cuda", launch.local_rank)
            torch.cuda.set_device(device)
        os.environ.setdefault("DS_ACCELERATOR", kind)  # read when deepspeed is imported
        return Place(start(launch, device, timeout=self.timeout), device)

    def build(self, model: nn.Module, training: Training, place: Place) -> Engine:
        from ocl.train.engine_deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(model, training, world=place.world, device=place.device, config=self._content())

    def _content(self) -> dict[str, Any]:
        return {} if self.config is None else deepspeed_config.read(self.config)
