"""Models as folders in the hub's layout: config.json, model.safetensors (trained tensors and registers), README.md (the card).

Frozen weights are not in the folder: they are read again from where the parts say, such as the pipeline of a diffusion decoder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import ocl
from ocl.errors import CheckpointError, ConfigError, MissingExtra
from ocl.models.autoencoder import SlotAutoencoder
from ocl.models.card import ModelCard, card_text
from ocl.models.description import build, describe
from ocl.nn.freezing import load_trainable_state_dict, restoring, trainable_state_dict
from ocl.nn.hub import offline

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"


def save_pretrained(model: SlotAutoencoder, folder: Path | str, *, card: ModelCard | None = None) -> Path:
    """Write a model; returns the folder. Raises ConfigError, before anything is written, for a model no config can name."""
    folder, description = Path(folder), describe(model)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in trainable_state_dict(model).items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    content = {"model_type": "ocl", "ocl_version": ocl.__version__, "model": description}
    (folder / CONFIG).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card_text(card or ModelCard(), description), encoding="utf-8")
    return folder


def from_pretrained(
    source: Path | str,
    *,
    packages: Sequence[str] = (),
    replace: Mapping[str, str] | None = None,
    revision: str | None = None,
    local_files_only: bool | None = None,
    cache_dir: Path | str | None = None,
) -> SlotAutoencoder:
    """The model of a folder that `save_pretrained` wrote, or of a hub repository (owner/name), in evaluation mode.

    packages: whose classes the config may name besides ocl's; they are imported. replace: texts of the config to read otherwise,
    such as {"old/pipeline": "new/pipeline"}. revision, cache_dir: as in huggingface_hub. local_files_only: never download; None
    decides by OCL_OFFLINE and HF_HUB_OFFLINE.
    Raises CheckpointError where a file is missing or damaged, or a tensor is missing, unknown or of another shape; ConfigError
    where the config names code from elsewhere or unknown arguments; MissingExtra for a hub repository without huggingface_hub.
    """
    folder = _located(source, revision, local_files_only, cache_dir)
    content = _read_config(folder / CONFIG)
    with restoring():
        model = build(_replaced(content["model"], replace or {}), packages=packages, place=str(folder / CONFIG))
    try:
        load_trainable_state_dict(model, load_file(folder / TENSORS))
    except CheckpointError as error:
        raise CheckpointError(f"{folder / TENSORS} does not fit {CONFIG} beside it: {error}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS} is missing or damaged ({error}); fetch the folder again.") from error
    return model.eval()


def push_to_hub(
    model: SlotAutoencoder, repo: str, *, card: ModelCard | None = None, private: bool = False, token: str | None = None,
    message: str = "Upload model",
) -> str:  # fmt: skip
    """Write the model into a hub repository (owner/name), which is made if it is not there; returns the address of the commit.

    token: None takes the one that `hf auth login` stored. Raises ConfigError where the environment forbids the network.
    """
    if offline():
        raise ConfigError(f"{repo} cannot be written while OCL_OFFLINE or HF_HUB_OFFLINE is set; unset it, or use save_pretrained.")
    api = _import_hub("models that are pushed").HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, card=card)
        address = api.create_repo(repo, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=address, folder_path=folder, commit_message=message))


def _located(source: Path | str, revision: str | None, local_files_only: bool | None, cache_dir: Path | str | None) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or folder.exists():
        raise CheckpointError(f"{folder} is no folder; pass one that save_pretrained wrote, or a hub repository (owner/name).")
    hub = _import_hub("models of the hub")
    local = offline() if local_files_only is None else local_files_only
    try:
        found = hub.snapshot_download(
            name, revision=revision, allow_patterns=[CONFIG, TENSORS], local_files_only=local, cache_dir=cache_dir
        )
    except Exception as error:  # huggingface_hub raises a dozen kinds, all for the user to fix
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        way_out = f"run once with network: hf download {name}" if local else "check the name, the network and your access"
        raise CheckpointError(f"{name} cannot be read from the hub ({reason}); {way_out}, or pass a folder.") from None
    return Path(found)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); pass a folder that save_pretrained wrote.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch the folder again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path} has no model in it; pass a folder that save_pretrained wrote.")
    return content


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _replaced(item, texts) for name, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, texts) for item in value]
    return texts.get(value, value) if isinstance(value, str) else value


def _import_hub(purpose: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra(purpose, "huggingface_hub", "diffusion") from error
    return huggingface_hub
