"""Latent-diffusion pipelines in the layout of diffusers: a local folder or a hub id, read part by part, offline if asked.

Every part is read in float32 from safetensors; no code from the folder is run. On the meta device only configs are read, and
for the pipelines in `known.py` not even those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ocl.decoders.diffusion.known import KNOWN
from ocl.errors import CheckpointError, ConfigError, MissingExtra
from ocl.nn.hub import builds_on_meta, import_transformers, offline, quiet_transformers

INDEX = "model_index.json"
_CONFIG_FILES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json", "tokenizer_2": "tokenizer_config.json"}


def import_diffusers() -> Any:
    """The diffusers package; MissingExtra where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtra("latent-diffusion decoders", "diffusers", "diffusion") from error
    return diffusers


def part_class(weights: str, part: str, *, local_files_only: bool | None = None) -> str:
    """Name of the class of one part, as model_index.json says. Raises CheckpointError where the pipeline has no such part."""
    entry = pipeline_index(weights, local_files_only=local_files_only).get(part)
    name = entry[1] if isinstance(entry, (list, tuple)) and len(entry) == 2 else None
    if not isinstance(name, str):
        raise CheckpointError(_lacks(weights, part, "it is not in model_index.json"))
    return name


def has_part(weights: str, part: str, *, local_files_only: bool | None = None) -> bool:
    """Whether model_index.json names this part."""
    entry = pipeline_index(weights, local_files_only=local_files_only).get(part)
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[1] is not None


def pipeline_index(weights: str, *, local_files_only: bool | None = None) -> Mapping[str, Any]:
    """What model_index.json holds: part -> [library, class]."""
    if builds_on_meta() and weights in KNOWN:
        return {part: ["diffusers", values["_class_name"]] for part, values in KNOWN[weights].items()}
    folder = _folder(weights)
    if folder is not None:
        return _read_json(folder / INDEX)
    with _reading(weights, INDEX, local_files_only) as local:
        return cast(Mapping[str, Any], import_diffusers().DiffusionPipeline.load_config(weights, local_files_only=local))


def part_config(weights: str, part: str, *, local_files_only: bool | None = None) -> Mapping[str, Any]:
    """The config of one part. Raises CheckpointError where it is missing or cannot be read."""
    if builds_on_meta() and weights in KNOWN:
        return KNOWN[weights][part]
    folder, name = _folder(weights), _CONFIG_FILES.get(part, "config.json")
    if folder is not None:
        if not (folder / part).is_dir():
            raise CheckpointError(_lacks(weights, part, f"{folder / part} is no folder"))
        return _read_json(folder / part / name)
    with _reading(weights, f"{part}/{name}", local_files_only) as local:
        import_transformers()
        from transformers.utils import cached_file

        path = cached_file(weights, name, subfolder=part, local_files_only=local)
    return _read_json(Path(str(path)))


def context_width(weights: str, *, local_files_only: bool | None = None) -> int:
    """Width C of what the pipeline's denoiser attends to, by its config alone."""
    if has_part(weights, "transformer", local_files_only=local_files_only):
        return int(part_config(weights, "transformer", local_files_only=local_files_only)["caption_channels"])
    width = part_config(weights, "unet", local_files_only=local_files_only)["cross_attention_dim"]
    return int(width[0] if isinstance(width, (list, tuple)) else width)


def load_part(weights: str, part: str, *, expected: tuple[str, ...], local_files_only: bool | None = None) -> Any:
    """A diffusers model of the pipeline, with its `config`; on the meta device without weights.

    expected: names of the classes that the caller can use. Raises ConfigError for another class, CheckpointError where files
    are missing or damaged, MissingExtra without diffusers.
    """
    diffusers = import_diffusers()
    name = part_class(weights, part, local_files_only=local_files_only)
    if name not in expected:
        raise ConfigError(f"the {part} of {weights} is a {name}, which is not supported; this needs {' or '.join(expected)}.")
    config = part_config(weights, part, local_files_only=local_files_only)
    kind = getattr(diffusers, name)
    if builds_on_meta():
        with quiet_diffusers():
            return kind.from_config(dict(config))
    # What is drawn next, such as the start of other parts, must not depend on which weights were read before.
    with _reading(weights, part, local_files_only) as local, quiet_diffusers(), torch.random.fork_rng(devices=[]):
        model, report = kind.from_pretrained(
            weights, subfolder=part, local_files_only=local, use_safetensors=True, torch_dtype=torch.float32,
            low_cpu_mem_usage=False, output_loading_info=True,
        )  # fmt: skip
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(f"the {part} of {weights} lacks {len(missing)} tensors ({missing[0]}, ...); copy it again.")
    return model


def load_text_encoder(weights: str, part: str, *, local_files_only: bool | None = None) -> nn.Module:
    """One of the pipeline's prompt encoders (a transformers model), in eval mode."""
    transformers = import_transformers()
    name = part_class(weights, part, local_files_only=local_files_only)
    kinds = {"Gemma2PreTrainedModel": "Gemma2Model", "Gemma2ForCausalLM": "Gemma2Model"}
    known = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "Gemma2Model")
    kind = kinds.get(name, name)
    if kind not in known:
        raise ConfigError(f"the {part} of {weights} is a {name}, which is not supported; this needs {' or '.join(known)}.")
    part_config(weights, part, local_files_only=local_files_only)
    with _reading(weights, part, local_files_only) as local, quiet_transformers():
        model = getattr(transformers, kind).from_pretrained(
            weights, subfolder=part, local_files_only=local, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    return cast(nn.Module, model.eval())


def load_tokenizer(weights: str, part: str, *, local_files_only: bool | None = None) -> Any:
    """The tokenizer that belongs to a prompt encoder."""
    transformers = import_transformers()
    part_config(weights, part, local_files_only=local_files_only)
    with _reading(weights, part, local_files_only) as local:
        return transformers.AutoTokenizer.from_pretrained(weights, subfolder=part, local_files_only=local, trust_remote_code=False)


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without diffusers' remarks about config keys that another version wrote."""
    logging = import_diffusers().utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _reading(weights: str, part: str, local_files_only: bool | None) -> Iterator[bool]:
    """Yields whether downloads are off; turns the dozen kinds of errors of three libraries into one that says what to do."""
    local = offline() if local_files_only is None else local_files_only
    try:
        yield local
    except (CheckpointError, ConfigError, MissingExtra):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(weights).expanduser().is_dir():
            message = f"the {part} of {weights} cannot be loaded ({reason}); copy that folder again."
        elif local:
            message = (
                f"{_no_folder(weights)}, and as a hub id {part} of {weights} is not in the local cache and downloads are off; run "
                f"once with network: hf download {weights}, or pass weights=<folder>."
            )
        else:
            message = (
                f"{_no_folder(weights)}, and as a hub id {part} of {weights} cannot be loaded ({reason}); check the name and the "
                "network, or pass weights=<folder>."
            )
        raise CheckpointError(message) from None


def _no_folder(weights: str) -> str:
    return f"{weights} is no folder in {Path.cwd()} (relative paths count from there, not from the config)"


def _folder(weights: str) -> Path | None:
    """The local folder that `weights` names; None for a hub id. Raises where it can be neither."""
    if not weights:
        raise ConfigError("weights is empty; pass a pipeline folder or a hub id such as owner/name.")
    folder = Path(weights).expanduser()
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise CheckpointError(f"{folder} holds no {INDEX}; pass a folder that a diffusers pipeline's save_pretrained wrote.")
        return folder
    if weights.startswith((".", "~", "/")) or weights.count("/") > 1 or "\\" in weights or folder.exists():
        raise CheckpointError(f"the pipeline folder {folder} is missing; pass an existing one or a hub id (owner/name).")
    return None


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); copy the pipeline folder again.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy the pipeline folder again.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold an object, got {type(found).__name__}; copy the pipeline folder again.")
    return found


def _lacks(weights: str, part: str, why: str) -> str:
    return f"the pipeline {weights} has no {part} ({why}); pass a complete one, or save it again with this part."
