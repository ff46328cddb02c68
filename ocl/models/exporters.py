"""Our models written as published checkpoints, for the tools of other projects. CODA: the layout that `importers` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import LatentUNet, LearnedRegisters, NullPrompt, SlotTokens
from ocl.decoders.diffusion.registers import null_prompt
from ocl.errors import CheckpointError
from ocl.interfaces import RegisterBank
from ocl.models.autoencoder import SlotAutoencoder
from ocl.models.importers import (
    CONFIG,
    ENCODER,
    INIT_KEYS,
    MODULE_KEYS,
    NULL,
    PREFIX,
    REGISTERS,
    SIZES,
    TENSORS,
    UNET,
    UNET_PREFIX,
)
from ocl.nn.freezing import trainable_state_dict
from ocl.nn.positions import coordinates
from ocl.slots import GaussianInit, SlotAttention

_KEY_VALUE_OUTPUT = ("to_k", "to_v", "to_out")


def export_coda(
    model: SlotAutoencoder, folder: Path | str, *, weights: str, grid: int = 32, backbone: str = "dinov2_vitb14",
    settings: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write `config.yaml`, `encoder/` and `unet/` of the official implementation: trained tensors and registers only.

    weights: the pipeline that the model was trained on. grid, backbone: side of the encoder's token grid, and its name there.
    settings: keys of config.yaml that shall have other values than in the official configuration, such as contrastive_weight.
    Raises CheckpointError where a part, or one of its settings, has no place in that layout: it holds CODA with a frozen
    encoder, a shared Gaussian, a whole null prompt or learned registers, and a Stable Diffusion U-Net. Beside learned registers
    stands the null prompt, unused, for which the pipeline's text encoder is read.
    """
    decoder, init, module = model.decoder, model.init, model.slot_module
    if not isinstance(decoder, LatentDiffusion) or not isinstance(decoder.denoiser, LatentUNet):
        raise CheckpointError(_unfit("decoder", "a LatentDiffusion with a LatentUNet"))
    registers = decoder.conditioner.registers if isinstance(decoder.conditioner, SlotTokens) else None
    if not isinstance(registers, (NullPrompt, LearnedRegisters)):
        raise CheckpointError(_unfit("conditioner", "SlotTokens with a NullPrompt or LearnedRegisters"))
    if isinstance(registers, NullPrompt) and registers.skip:
        raise CheckpointError(_unfit(f"NullPrompt(skip={registers.skip})", "all tokens of the prompt, skip=0"))
    if trainable_state_dict(model.encoder):
        raise CheckpointError(_unfit(f"{type(model.encoder).__name__}, which is trained,", "a frozen, published encoder"))
    if not isinstance(init, GaussianInit) or not isinstance(module, SlotAttention):
        raise CheckpointError(_unfit("slots", "GaussianInit and SlotAttention"))
    if module.position is None or module.input is None or module.output is None or module.gradient == "implicit":
        raise CheckpointError(_unfit("slot module", "SlotAttention(position=True, input_mlp=True, out_dim=...)"))
    _check_settings(module)
    folder = Path(folder)
    learned = isinstance(registers, LearnedRegisters)
    sizes = _encoder_config(module, init, weights, grid, backbone) | {"num_registers": len(registers()) if learned else -1}
    state = _slot_state(module, init, grid) | _register_state(registers, weights)
    unet: Any = decoder.denoiser.backbone.module
    trained = {name.removeprefix(UNET_PREFIX): value for name, value in trainable_state_dict(decoder.denoiser).items()}
    published = {"_class_name": type(unet).__name__, **{name: value for name, value in unet.config.items() if name[0] != "_"}}
    for name, tensors, values in ((ENCODER, state, sizes), (UNET, trained, published)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / name / TENSORS)
        (folder / name / SIZES).write_text(json.dumps(values, indent=2, sort_keys=True, default=list) + "\n")
    config = _pipeline_config(decoder, sizes, trained, weights, settings or {})
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


def _encoder_config(module: SlotAttention, init: GaussianInit, weights: str, grid: int, backbone: str) -> dict[str, Any]:
    first: Any = module.mlp[0]
    return {
        "_class_name": "RegisterSlotDiffusion",
        "model_id": weights,
        "dino_id": backbone,
        "dino_requires_grad": False,
        "dino_enable_register": False,
        "dino_sample_size": grid,
        "dino_out_channels": module.feature_dim,
        "slot_n_iterations": module.num_iterations,
        "slot_n_slots": init.num_slots,
        "slot_n_heads": module.num_heads,
        "slot_out_channels": module.out_dim,
        "slot_size": module.slot_dim,
        "slot_mlp_hidden_size": first.out_features,
        "slot_epsilon": module.eps,
        "slot_learnable_slot_init": False,
        "slot_bi_level": module.gradient == "bilevel",
    }


def _check_settings(module: SlotAttention) -> None:
    """That the slot module computes what the official one does: these of its settings have no key in the layout."""
    scale = "slot" if module.scale == module.slot_dim**-0.5 else "head"
    known = {"eps_on": (module.eps_on, "weights"), "gru_state": (module.gru_state, "raw"), "scale": (scale, "slot")}
    for name, (value, needed) in known.items():
        if value != needed:
            raise CheckpointError(_unfit(f"SlotAttention({name}={value!r})", f"{name}={needed!r}"))


def _register_state(registers: RegisterBank, weights: str) -> dict[str, Tensor]:
    if isinstance(registers, LearnedRegisters):
        return {REGISTERS: registers()[None], NULL: null_prompt(weights)[None]}
    return {NULL: registers()[None]}


def _slot_state(module: SlotAttention, init: GaussianInit, grid: int) -> dict[str, Tensor]:
    stems = {ours: theirs for theirs, ours in MODULE_KEYS.items()}
    state = {PREFIX + theirs: init.state_dict()[ours] for theirs, ours in INIT_KEYS.items()}
    for name, value in module.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        place = stem == "position.projection" and leaf == "weight"
        state[f"{PREFIX}{stems[stem]}.{leaf}"] = value[..., None, None] if place else value  # a 1 x 1 convolution there
    state[f"{PREFIX}pos.pe"] = coordinates((grid, grid)).t().unflatten(1, (grid, grid))[None]
    return state


def _pipeline_config(
    decoder: LatentDiffusion, sizes: Mapping[str, Any], trained: Mapping[str, Tensor], weights: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    keys = [f".attn2.{name}." for name in ("to_q", *_KEY_VALUE_OUTPUT) if any(f".attn2.{name}." in key for key in trained)]
    encoder = {"_target_": "src.model.encoder.RegisterSlotDiffusion", **{k: v for k, v in sizes.items() if k != "_class_name"}}
    return {
        "_target_": "src.model.pipeline.DiffusionPipeline",
        "encoder": encoder,
        "model_id": weights,
        "scheduler_train": "DDPMScheduler",
        "scheduler_test": "DDIMScheduler",
        "inference_steps": 50,
        "guidance_scale": 7.5,
        "enable_xformers": False,
        "training_unet_cross_attention": True,
        "training_unet": False,
        "trainable_keys": keys,
        "cross_attention_dim": decoder.slot_dim,
        "mixed_precision": "no",
        "cfg_dropping_rate": decoder.drop_rate,
        "contrastive_weight": 0.05,
        "contrastive_sampling_rate": 0.5,
        "contrastive_warmup": 20_000,
        **settings,
    }


def _unfit(part: str, needed: str) -> str:
    return f"this model's {part} has no place in the layout of CODA checkpoints, which needs {needed}; use save_pretrained."
