"""How a run trains: the typed schema behind `training:` in a config. Every value is checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ocl.errors import ConfigError

Tracker = Literal["wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW (Loshchilov & Hutter 2019).

    Args:
        lr: peak learning rate; the schedule multiplies it.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay; 0 makes this Adam.
        decay_vectors: also decay biases, norms and other parameters with fewer than two dimensions.
        rates: factors on the learning rate of parts, such as {slot_module: 0.1, decoder.denoiser: 2}; of several names that a
            parameter's begins with, the longest counts. 0 leaves a part as it is.
    """

    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_vectors: bool = False
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("optimizer.lr", self.lr, 0 < self.lr < math.inf, "be positive")
        for beta in self.betas:
            _check("optimizer.betas", self.betas, 0 <= beta < 1, "lie in [0, 1)")
        _check("optimizer.eps", self.eps, 0 < self.eps < math.inf, "be positive")
        _check("optimizer.weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "be 0 or more")
        for part, rate in self.rates.items():
            _check(f"optimizer.rates of {part}", rate, 0 <= rate < math.inf, "be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Factor on the learning rate; `ocl.train.schedule` holds the formulas.

    Args:
        kind: what happens after the warm-up.
        warmup_steps: steps over which the rate rises linearly to its peak; 0 for none.
        final: fraction of the peak that is reached at the last step (ignored by `constant`).
    """

    kind: Literal["constant", "cosine", "linear", "exponential"] = "constant"
    warmup_steps: int = 0
    final: float = 0.1

    def __post_init__(self) -> None:
        kinds = ("constant", "cosine", "linear", "exponential")
        _check("schedule.kind", self.kind, self.kind in kinds, f"be one of {', '.join(kinds)}")
        _check("schedule.warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "be 0 or more")
        _check("schedule.final", self.final, 0 <= self.final <= 1, "lie in [0, 1]")
        positive = self.kind != "exponential" or self.final > 0
        _check("schedule.final", self.final, positive, "be positive for exponential decay, for instance 0.01")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run: how long, how large a step, in which precision, and what is written when.

    Args:
        steps: number of updates.
        start_from: weights to begin with, a model.safetensors of the same model; null begins with fresh ones.
        start_parts: take only these parts out of start_from, such as [init, slot_module], into a model that may differ in the
            others. Tensors of a part that the file lacks begin afresh. Empty takes everything, and demands everything.
        batch_size: images per forward pass, all processes together; contrastive partners lie in one such batch.
        accumulate: forward passes per update; one update sees batch_size * accumulate images.
        optimizer: AdamW and its rates.
        schedule: learning rate over the run.
        clip: largest gradient norm over all trained parameters; null for none.
        precision: fp32, or autocast to bf16 or fp16 (fp16 scales the loss and skips overflowing updates).
        ema: decay of the moving average of the weights, such as 0.999; null for none. Evaluation uses the average.
        compile: run the whole model through torch.compile; or "denoiser" for the backbone of a diffusion decoder alone, or
            "denoiser-graphs" for that with torch's reduce-overhead mode (CUDA graphs).
        channels_last: keep images and convolutions in channels-last layout.
        flip: how likely a training image is mirrored.
        cache: folder that `ocl cache` wrote, to be read in place of running frozen parts; null runs them at every step.
        seed: every random draw of the run follows from (seed, step).
        workers: processes that load data, for each training process; 0 loads in the training process itself.
        data_timeout: seconds after which workers that give no batch count as hung; 0 waits for ever.
        log_every: steps between log lines.
        eval_every: steps between evaluations; 0 for none. If any, the last step is evaluated as well.
        checkpoint_every: steps between checkpoints. The first and last states are saved as well.
        keep_checkpoints: how many checkpoints stay; the oldest goes once a newer one is complete.
        write_in_background: write checkpoints while training goes on, from a copy of the state in main memory.
        track: also report to these services, each of which must be installed. log.jsonl and TensorBoard are always written.
        peak_tflops: what one device can do in the run's precision; given, the log tells the share of it that is used (MFU).
        profile: updates to trace, from the third of this start on, into run/profile/ (chrome://tracing, Perfetto); 0 for none.
            A run that ends earlier writes what it has.
    """

    steps: int = 100_000
    start_from: Path | None = None
    start_parts: tuple[str, ...] = ()
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    clip: float | None = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float | None = None
    compile: bool | Literal["denoiser", "denoiser-graphs"] = False
    channels_last: bool = False
    flip: float = 0.0
    cache: Path | None = None
    seed: int = 0
    workers: int = 0
    data_timeout: float = 1800.0
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    write_in_background: bool = False
    track: tuple[Tracker, ...] = ()
    peak_tflops: float | None = None
    profile: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints"):
            _check(f"training.{name}", getattr(self, name), getattr(self, name) >= 1, "be 1 or more")
        for name in ("seed", "workers", "eval_every", "data_timeout", "profile"):
            _check(f"training.{name}", getattr(self, name), getattr(self, name) >= 0, "be 0 or more")
        _check("training.seed", self.seed, self.seed < 2**63, "be below 2**63")
        _check("training.clip", self.clip, self.clip is None or 0 < self.clip < math.inf, "be positive, or null for none")
        _check("training.ema", self.ema, self.ema is None or 0 <= self.ema < 1, "lie in [0, 1), or be null for none")
        _check("training.flip", self.flip, 0 <= self.flip <= 1, "lie in [0, 1]")
        _check("training.peak_tflops", self.peak_tflops, self.peak_tflops is None or self.peak_tflops > 0, "be positive, or null")
        alone = bool(self.start_parts) and self.start_from is None
        _check("training.start_parts", self.start_parts, not alone, "come with training.start_from, the file to take them from")
        known = ("wandb", "mlflow")
        _check("training.track", self.track, set(self.track) <= set(known), f"name only {', '.join(known)}")
        precisions = ("fp32", "bf16", "fp16")
        _check("training.precision", self.precision, self.precision in precisions, f"be one of {', '.join(precisions)}")


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name} must {rule}, got {value!r}.")
