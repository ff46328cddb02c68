"""Published weights of transformers models: a local folder or a hub id, offline if asked, with errors a user can act on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ocl.errors import CheckpointError, ConfigError, MissingExtra

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TRUE = {"1", "true", "yes", "on"}
_WEIGHTS = re.compile(r"(preprocessor_)?config\.json|(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")


def offline() -> bool:
    """Whether the environment forbids downloads: OCL_OFFLINE or HF_HUB_OFFLINE is set to 1, true, yes or on."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("OCL_OFFLINE", "HF_HUB_OFFLINE"))


def builds_on_meta() -> bool:
    """Whether we are inside `with torch.device("meta")`, where shapes are wanted and no weights are read."""
    return torch.get_default_device().type == "meta"


def load_config(weights: str, *, local_files_only: bool | None = None) -> PretrainedConfig:
    """The transformers config of a local folder or hub id; runs no code from there.

    local_files_only: None follows `offline()`. Raises CheckpointError where a folder or file is missing or damaged, or where
    a hub id is neither in the local cache nor allowed to be downloaded; MissingExtra without transformers.
    """
    auto_config = import_transformers().AutoConfig
    source, local = _locate(weights), offline() if local_files_only is None else local_files_only
    try:
        config: PretrainedConfig = auto_config.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # transformers, huggingface_hub and safetensors raise a dozen kinds, all for the user to fix
        raise CheckpointError(_advice(weights, source, local, error)) from None
    return config


def load_transformer(
    weights: str, config: PretrainedConfig, *, unused: Collection[str], local_files_only: bool | None = None
) -> nn.Module:
    """The model in float32 on the CPU; reads safetensors only and raises like `load_config`.

    A tensor that the files lack is an error too, unless one of the parts of its dotted name is in `unused`.
    """
    auto_model = import_transformers().AutoModel
    source, local = _locate(weights), offline() if local_files_only is None else local_files_only
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):  # what is drawn next does not depend on who reads what
            model, report = auto_model.from_pretrained(
                source, config=config, local_files_only=local, use_safetensors=True, trust_remote_code=False,
                dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        raise CheckpointError(_advice(weights, source, local, error)) from None
    missing = sorted(name for name in report["missing_keys"] if not set(name.split(".")) & set(unused))
    if missing:
        raise CheckpointError(f"the weights in {weights} lack {len(missing)} tensors ({missing[0]}, ...); copy them again.")
    return cast(nn.Module, model)


def weight_files(weights: str, part: str = "") -> list[Path]:
    """Config and safetensors that a model, or one part of a pipeline, is read from, in the order of their names.

    Those of a hub id must have been downloaded before. Raises CheckpointError where there are none.
    """
    folder = Path(weights).expanduser() / part
    if not folder.is_dir():
        import_transformers()
        from transformers.utils import cached_file

        try:
            path = cached_file(weights, "config.json", subfolder=part, local_files_only=True)
        except OSError as error:
            raise CheckpointError(
                f"{part or 'the model'} of {weights} is not on this machine ({str(error).splitlines()[0]}); "
                f"run once with network: hf download {weights}, or pass weights=<folder>."
            ) from None
        folder = Path(str(path)).parent
    found = sorted(path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name))
    if not any(path.suffix == ".safetensors" for path in found):
        raise CheckpointError(f"{folder} holds no weights (*.safetensors); copy them again.")
    return found


def read_preprocessor(weights: str, *, local_files_only: bool | None = None) -> dict[str, Any]:
    """The model's own preprocessor_config.json, or {} where it has none."""
    import_transformers()
    from transformers.utils import cached_file

    local = offline() if local_files_only is None else local_files_only
    try:
        path = cached_file(_locate(weights), "preprocessor_config.json", local_files_only=local)
    except OSError:
        return {}
    try:
        found: dict[str, Any] = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy the model folder again.") from None
    return found


def import_transformers() -> Any:
    """The transformers package; MissingExtra where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers encoders", "transformers", "diffusion") from error
    return transformers


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own table of unused tensors and its bar; bars of downloads stay."""
    logging = import_transformers().utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _locate(weights: str) -> str:
    """A folder that exists, or a hub id; raises where it can be neither."""
    if not weights:
        raise ConfigError("weights is empty; pass a folder or a hub id such as owner/name.")
    folder = Path(weights).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json; pass a folder that transformers' save_pretrained wrote.")
        return str(folder)
    looks_like_path = weights.startswith((".", "~", "/")) or weights.count("/") > 1 or "\\" in weights or folder.exists()
    if looks_like_path:
        raise CheckpointError(f"the folder {folder} of weights is missing; pass an existing one or a hub id (owner/name).")
    return weights


def _advice(weights: str, source: str, local: bool, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if Path(source).is_dir():
        return f"the weights in {source} cannot be loaded ({reason}); copy config.json and model.safetensors again."
    if local:
        return (
            f"the weights {weights} are not in the local cache and downloads are off; run once with network: "
            f"hf download {weights}, or pass weights=<folder>."
        )
    return f"the weights {weights} cannot be loaded ({reason}); check the name and the network, or pass weights=<folder>."
