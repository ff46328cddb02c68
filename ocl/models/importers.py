"""Published checkpoints read into our parts, with every key accounted for.

CODA (sony/coda): a folder with `encoder/config.json` and `encoder/diffusion_pytorch_model.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ocl.errors import CheckpointError
from ocl.nn.positions import coordinates
from ocl.slots import GaussianInit, SlotAttention

_PREFIX = "slot_attn."
_INIT_KEYS = {"slot_mu": "mean", "slot_log_sigma": "log_std"}
_MODULE_KEYS = {
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
_ELSEWHERE = ("null_embedding", "register_tokens", "negative_tokens", "backbone.")  # belong to other parts of that method


def coda_slots(folder: Path | str) -> tuple[SlotAttention, GaussianInit]:
    """The slot module and the initial slots of a published CODA checkpoint, ready to use with its frozen encoder.

    Raises CheckpointError where a file is missing or unreadable, where a key is missing, unknown or of another shape than
    the sizes in its config say, or where the checkpoint uses a learned initial slot table, which no published one does.
    """
    folder = Path(folder) / "encoder"
    config = _read_json(folder / "config.json")
    state = _read_safetensors(folder / "diffusion_pytorch_model.safetensors")
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
    init_state, module_state = _rename(state, folder)
    _load(init, init_state, folder)
    _load(module, module_state, folder)
    return module, init


def _rename(state: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    init: dict[str, Tensor] = {}
    module: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(_ELSEWHERE):
            continue
        name = key.removeprefix(_PREFIX)
        stem, _, leaf = name.rpartition(".")
        if name == "pos.pe":
            _check_coordinates(value, folder)
        elif name in _INIT_KEYS:
            init[_INIT_KEYS[name]] = value
        elif stem in _MODULE_KEYS:
            tensor = value.flatten(1) if stem == "pos.projection" and leaf == "weight" else value  # a 1 x 1 convolution
            module[f"{_MODULE_KEYS[stem]}.{leaf}"] = tensor
        else:
            raise CheckpointError(f"{folder}: unknown key {key}; this is not a CODA slot encoder.")
    return init, module


def _check_coordinates(table: Tensor, folder: Path) -> None:
    ours = coordinates((table.shape[-2], table.shape[-1]), dtype=table.dtype)
    if not torch.allclose(table[0].flatten(1).t(), ours, atol=1e-6):
        raise CheckpointError(f"{folder}: its position table is not the grid of cell centres (y, x, 1 - y, 1 - x).")


def _load(part: torch.nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in part.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        details = ", ".join(f"{name} (expected {expected.get(name)}, found {found.get(name)})" for name in wrong[:5])
        raise CheckpointError(f"{folder}: {len(wrong)} tensors do not fit {type(part).__name__}: {details}.")
    part.load_state_dict(state)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); pass the folder that holds `encoder/`.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy the checkpoint again.") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; pass the folder that holds `encoder/`.") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the checkpoint again.") from error
