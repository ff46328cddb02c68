"""The JSON file of the DeepSpeed engine: what it may say, and what it becomes. Everything about the experiment is said elsewhere.

Needs no deepspeed: a file is checked before a weight is loaded, also where deepspeed is not installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ocl.errors import ConfigError
from ocl.train import deepspeed_schema
from ocl.train.options import Training

_SAID_ELSEWHERE = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.batch_size, which is divided by the number of processes",
    "gradient_accumulation_steps": "training.accumulate",
    "gradient_clipping": "training.clip",
    "optimizer": "training.optimizer",
    "scheduler": "training.schedule",
    "fp16": "training.precision=fp16",
    "bf16": "training.precision=bf16",
    "torch_autocast": "training.precision",
    "amp": "training.precision",
    "data_types": "training.precision",
    "activation_checkpointing": "checkpointing=true of the denoiser, such as model.decoder.denoiser.checkpointing",
    "tensorboard": "nothing: TensorBoard is always written",
    "wandb": "training.track=[wandb]",
    "checkpoint": "training.checkpoint_every and training.write_in_background",
    "data_efficiency": "nothing: it changes the experiment",
    "compression_training": "nothing: it changes the experiment",
    "seed": "training.seed",
}
_ZEROPP = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")
_LARGEST_BUCKET = 500_000_000  # numbers: deepspeed's own bucket, whatever is trained
_STAGE_3_ONLY = ("offload_param", "zero_hpz_partition_size", *_ZEROPP)


def read(path: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises ConfigError where it cannot be read or says something that it must not say.

    Every key and the kind of every value is checked, without deepspeed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os.strerror(error.errno or 0)}; see configs/deepspeed.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; see configs/deepspeed.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(content).__name__}; see configs/deepspeed/zero2.json.")
    for key in content:
        if key in _SAID_ELSEWHERE:
            raise ConfigError(f"{path}: {key} belongs to the experiment, not to the engine; set {_SAID_ELSEWHERE[key]}.")
    deepspeed_schema.check_keys(content, str(path))
    return content


def check(config: Mapping[str, Any], training: Training, *, device: str, size: int, name: str) -> None:
    """Raises ConfigError where a configuration that `read` took cannot run: combinations, hardware, a batch that cannot be divided.

    device: "cpu" or "cuda". size: number of processes. name: the file, for messages.
    """
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    check_batch(training, size)
    for key in _STAGE_3_ONLY:
        if _is_on(zero.get(key)) and stage != 3 and not (key == "zero_quantized_gradients" and stage == 2):
            raise ConfigError(f"{name}: {key} needs zero_optimization.stage 3, got stage {stage}.")
    if _is_on(zero.get("offload_optimizer")) and stage == 0:
        raise ConfigError(f"{name}: offload_optimizer needs zero_optimization.stage 1, 2 or 3, got stage 0.")
    for key in _ZEROPP:
        if zero.get(key) and device != "cuda":
            raise ConfigError(f"{name}: {key} (ZeRO++) needs CUDA devices and deepspeed's compiled quantizer; leave it out here.")
        if zero.get(key) and training.precision == "fp32":
            raise ConfigError(f"{name}: {key} (ZeRO++) rounds what is sent, which fp32 forbids; set training.precision=bf16.")
    group = zero.get("zero_hpz_partition_size", 1)
    if size % group:
        raise ConfigError(f"{name}: zero_hpz_partition_size must divide the number of processes, {size}, got {group}.")
    wanted = config.get("communication_data_type")
    if wanted is not None and wanted not in ("fp32", training.precision):
        raise ConfigError(f"{name}: communication_data_type={wanted} does not go with training.precision={training.precision}; "
                          f"use fp32 or {training.precision}.")  # fmt: skip
    if stage == 3 and training.compile:
        raise ConfigError(f"{name}: stage 3 fetches weights while the model runs, which a compiled model does not do; "
                          "set training.compile=false, or use stage 2.")  # fmt: skip


def check_batch(training: Training, size: int) -> None:
    """Raises ConfigError where a batch cannot be divided among `size` processes."""
    if training.batch_size % size:
        raise ConfigError(
            f"training.batch_size={training.batch_size} cannot be divided among {size} processes; choose a multiple of {size} "
            f"(an update sees batch_size x accumulate = {training.batch_size * training.accumulate} images)."
        )


def bucket_size(trained: int, largest: int) -> int:
    """Numbers of a buffer in which gradients are sent, where a file does not say: a fourth of what is trained.

    So gradients leave while the backward pass goes on, from a buffer that is small beside them; the largest tensor has room.
    """
    return min(max(largest, -(-trained // 4), 1), _LARGEST_BUCKET)


def complete(config: Mapping[str, Any], training: Training, *, size: int, trained: Sequence[int]) -> dict[str, Any]:
    """What `deepspeed.initialize` gets. trained: how many numbers each trained tensor has.

    Weights, gradients and moments are float32; training.precision is autocast and loss scaling, as in the local engine. Stage 0
    is clipped by us. Small weights are partitioned like large ones, so that every one is stored in one way. Buffers of stages 1
    to 3, and the weights that stage 3 holds at a time, are of `bucket_size` where the file does not name them.
    """
    bucket = bucket_size(sum(trained), max(trained))
    zero = {"stage": 0, "reduce_bucket_size": bucket, **config.get("zero_optimization", {})}
    if zero["stage"] == 3:
        held = dict.fromkeys(("stage3_prefetch_bucket_size", "stage3_max_live_parameters", "stage3_max_reuse_distance"), bucket)
        zero = {"stage3_param_persistence_threshold": 0, **held, **zero}
    return {
        **config,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": training.batch_size // size,
        "gradient_accumulation_steps": training.accumulate,
        "gradient_clipping": (training.clip or 0.0) if zero["stage"] else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: nothing to compile, and the same numbers as the local engine
        "steps_per_print": 2**31,
    }


def _is_on(value: Any) -> bool:
    """Whether a part of the configuration asks for something: {"device": "none"}, 1 and false do not."""
    if isinstance(value, Mapping):
        return value.get("device", "none") != "none"
    return value is True or value not in (None, False, 0, 1)
