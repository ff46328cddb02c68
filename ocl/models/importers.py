"""Published checkpoints read into our parts, with every key accounted for.

CODA (sony/coda): a folder with `config.yaml`, `encoder/` and `unet/`, the latter two in the layout of diffusers; `unet/` holds the
trained tensors only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import LatentUNet, LearnedRegisters, NullPrompt, SlotTokens
from ocl.decoders.diffusion.cross_attention import Projection
from ocl.encoders import DINOv2
from ocl.errors import CheckpointError
from ocl.interfaces import Encoder, RegisterBank
from ocl.models.autoencoder import SlotAutoencoder
from ocl.nn.freezing import trainable_state_dict
from ocl.nn.positions import coordinates
from ocl.slots import GaussianInit, SlotAttention

CONFIG, ENCODER, UNET = "config.yaml", "encoder", "unet"
TENSORS, SIZES = "diffusion_pytorch_model.safetensors", "config.json"
PREFIX = "slot_attn."
INIT_KEYS = {"slot_mu": "mean", "slot_log_sigma": "log_std"}
MODULE_KEYS = {
    "pos.projection": "position.projection",
    "in_layer_norm": "input.0",
    "in_mlp.0": "input.1.0",
    "in_mlp.2": "input.1.2",
    "norm_inputs": "norm_features",
    "norm_slots": "norm_slots",
    "norm_mlp": "norm_mlp",
    "project_q": "to_q",
    "project_k": "to_k",
    "project_v": "to_v",
    "gru": "gru",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
    "out_layer_norm": "output.0",
    "out_linear": "output.1",
}
BACKBONES: dict[str, Literal["small", "base", "large", "giant"]] = {
    "dinov2_vits14": "small", "dinov2_vitb14": "base", "dinov2_vitl14": "large", "dinov2_vitg14": "giant",
}  # fmt: skip
UNET_PREFIX = "backbone.module."  # of a tensor's name in LatentUNet, before the name that diffusers gives it
NULL, REGISTERS, NEGATIVE = "null_embedding", "register_tokens", "negative_tokens"
_SIZES = (
    "num_registers", "dino_id", "dino_sample_size", "dino_out_channels", "slot_n_iterations", "slot_n_slots", "slot_n_heads",
    "slot_out_channels", "slot_size", "slot_mlp_hidden_size", "slot_epsilon",
)  # fmt: skip


def coda_model(folder: Path | str, *, weights: str | None = None, encoder: Encoder | None = None) -> SlotAutoencoder:
    """The whole model of a published CODA checkpoint.

    weights: the pipeline it was trained on; None is the one that its config.yaml names.
    encoder: None is the DINOv2 that its config names, on images resized to the size it was trained with.
    Raises CheckpointError where a file is missing or unreadable, or where a key is missing, unknown or of another shape.
    """
    folder = Path(folder)
    config, sizes = _read_yaml(folder / CONFIG), _read_sizes(folder / ENCODER)
    weights = weights or str(config["model_id"])
    trained = _trained(config["trainable_keys"], folder) if config.get("training_unet_cross_attention", True) else ()
    if config.get("training_unet"):
        raise CheckpointError(f"{folder}: its whole U-Net was trained, which is not supported; cross-attention projections are.")
    denoiser = LatentUNet(weights, trained=trained)
    _load_unet(denoiser, folder / UNET)
    registers = coda_registers(folder, weights=weights)
    if registers.width != denoiser.context_dim:
        raise CheckpointError(
            f"{folder}: its registers have width {registers.width}, the U-Net of {weights} takes {denoiser.context_dim}; "
            "pass the pipeline that it was trained on as weights."
        )
    module, init = coda_slots(folder)
    drop_rate = float(config.get("cfg_dropping_rate", 0.0))
    decoder = LatentDiffusion(weights, denoiser=denoiser, conditioner=SlotTokens(registers), drop_rate=drop_rate)
    return SlotAutoencoder(encoder or _encoder(sizes, folder), init, module, decoder)


def coda_registers(folder: Path | str, *, weights: str | None = None) -> RegisterBank:
    """The registers of a published CODA checkpoint; no text encoder is needed. Raises CheckpointError like `coda_model`.

    weights: the pipeline whose null prompt they are, if the model is to be saved in the hub's layout.
    """
    folder = Path(folder) / ENCODER
    state, sizes = _read_safetensors(folder / TENSORS), _read_sizes(folder)
    number, null = sizes["num_registers"], state.get(NULL)
    if null is None or null.ndim != 3 or len(null) != 1:
        raise CheckpointError(f"{folder}: {NULL} [1, R, C] is missing; this is not a CODA checkpoint.")
    if number == 0:
        raise CheckpointError(f"{folder}: it has a learned negative prompt and no registers, which is not supported.")
    if number < 0:
        skip = int(sizes["slot_n_slots"]) if number == -2 else 0
        return NullPrompt.stored(null[0, skip:], weights=weights, skip=skip)
    bank = LearnedRegisters(number, null.shape[2])
    _load(bank, {"table": state[REGISTERS][0]} if REGISTERS in state else {}, folder)
    return bank


def coda_slots(folder: Path | str) -> tuple[SlotAttention, GaussianInit]:
    """The slot module and the initial slots of a published CODA checkpoint, ready to use with its frozen encoder.

    Raises CheckpointError where a file is missing or unreadable, where a key is missing, unknown or of another shape than
    the sizes in its config say, or where the checkpoint uses a learned initial slot table, which no published one does.
    """
    folder = Path(folder) / ENCODER
    config = _read_sizes(folder)
    state = _read_safetensors(folder / TENSORS)
    if config.get("slot_learnable_slot_init"):
        raise CheckpointError(f"{folder}: learned initial slots are not published by CODA and cannot be imported.")
    module = SlotAttention(
        feature_dim=config["dino_out_channels"],
        slot_dim=config["slot_size"],
        out_dim=config["slot_out_channels"],
        num_iterations=config["slot_n_iterations"],
        num_heads=config["slot_n_heads"],
        mlp_dim=config["slot_mlp_hidden_size"],
        eps=config["slot_epsilon"],
        position=True,
        input_mlp=True,
        gradient="bilevel" if config.get("slot_bi_level") else "full",
    )
    init = GaussianInit(config["slot_n_slots"], config["slot_size"])
    init_state, module_state = _rename(state, _of_other_parts(config), folder)
    _load(init, init_state, folder)
    _load(module, module_state, folder)
    return module, init


def _encoder(sizes: Mapping[str, Any], folder: Path) -> Encoder:
    name = sizes["dino_id"]
    if name not in BACKBONES or sizes.get("dino_enable_register"):
        raise CheckpointError(f"{folder}: its backbone {name}, or the way it was used, is not supported; pass encoder=....")
    return DINOv2(BACKBONES[name], image_size=14 * sizes["dino_sample_size"])


def _trained(keys: list[str], folder: Path) -> tuple[Projection, ...]:
    """['.attn2.to_k.', ...] -> ('to_k', ...)."""
    names: tuple[Projection, ...] = ("to_q", "to_k", "to_v", "to_out")
    known = {f".attn2.{name}.": name for name in names}
    unknown = sorted(set(keys) - known.keys())
    if unknown:
        raise CheckpointError(f"{folder}: trained tensors {', '.join(unknown)} are not cross-attention projections.")
    return tuple(known[key] for key in keys)


def _load_unet(denoiser: LatentUNet, folder: Path) -> None:
    """Fill exactly the trained tensors."""
    state = {UNET_PREFIX + name: value for name, value in _read_safetensors(folder / TENSORS).items()}
    expected = {name: tuple(value.shape) for name, value in trainable_state_dict(denoiser).items()}
    _compare(expected, {name: tuple(value.shape) for name, value in state.items()}, "the trained part of the U-Net", folder)
    denoiser.load_state_dict(state, strict=False)


def _of_other_parts(sizes: Mapping[str, Any]) -> set[str]:
    """Keys beside those of the slots, as the registers that the config declares bring them."""
    number = sizes["num_registers"]
    return {NULL} | ({REGISTERS} if number > 0 else set()) | ({NEGATIVE} if number == 0 else set())


def _rename(state: Mapping[str, Tensor], others: set[str], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    init: dict[str, Tensor] = {}
    module: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in others:
            continue
        name = key.removeprefix(PREFIX)
        stem, _, leaf = name.rpartition(".")
        if name == "pos.pe":
            _check_coordinates(value, folder)
        elif name in INIT_KEYS:
            init[INIT_KEYS[name]] = value
        elif stem in MODULE_KEYS:
            tensor = value.flatten(1) if stem == "pos.projection" and leaf == "weight" else value  # a 1 x 1 convolution
            module[f"{MODULE_KEYS[stem]}.{leaf}"] = tensor
        else:
            raise CheckpointError(f"{folder}: unknown key {key}, which {SIZES} does not declare; this is not a CODA slot encoder.")
    return init, module


def _check_coordinates(table: Tensor, folder: Path) -> None:
    ours = coordinates((table.shape[-2], table.shape[-1]), dtype=table.dtype)
    if not torch.allclose(table[0].flatten(1).t(), ours, atol=1e-6):
        raise CheckpointError(f"{folder}: its position table is not the grid of cell centres (y, x, 1 - y, 1 - x).")


def _load(part: torch.nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in part.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    _compare(expected, found, type(part).__name__, folder)
    part.load_state_dict(state)


def _compare(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], part: str, folder: Path) -> None:
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        details = ", ".join(f"{name} (expected {expected.get(name)}, found {found.get(name)})" for name in wrong[:5])
        raise CheckpointError(f"{folder}: {len(wrong)} tensors do not fit {part}: {details}.")


def _read_sizes(folder: Path) -> dict[str, Any]:
    """The config of `encoder/`. Raises CheckpointError where it lacks a size, or where the backbone was trained as well."""
    sizes = _read_json(folder / SIZES)
    missing = [name for name in _SIZES if name not in sizes]
    if missing:
        raise CheckpointError(f"{folder / SIZES} lacks {', '.join(missing)}; this is not the config of a CODA slot encoder.")
    if sizes.get("dino_requires_grad"):
        raise CheckpointError(
            f"{folder}: its DINO was trained with it (dino_requires_grad), and trained DINO weights can neither be read nor "
            "replaced by encoder=...; pass a checkpoint whose backbone stayed frozen."
        )
    return sizes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); pass the folder that holds `encoder/`.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy the checkpoint again.") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    """Plain values only: tags that would build objects are refused."""
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); pass the folder that holds `{CONFIG}`.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not YAML ({' '.join(str(error).split())}); copy the checkpoint again.") from error
    missing = [key for key in ("model_id", "trainable_keys") if not isinstance(found, dict) or key not in found]
    if missing:
        raise CheckpointError(f"{path} lacks {' and '.join(missing)}; this is not the config of a CODA checkpoint.")
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; pass the folder that holds `encoder/`.") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again.") from error
