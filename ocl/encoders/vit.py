"""Any vision transformer of the transformers library as an encoder: its patch tokens, without class token and registers."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocl.encoders.sizes import SIZES
from ocl.errors import ConfigError
from ocl.interfaces import Encoder
from ocl.nn.freezing import Frozen, is_postponing
from ocl.nn.hub import builds_on_meta, import_transformers, load_config, load_transformer, read_preprocessor, weight_files
from ocl.nn.normalise import CLIP, IMAGENET, SIGNED, Normalise, Statistics
from ocl.types import Features

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NOT_IN_TOKENS = ("mask_token", "pooler", "head")  # parts that no patch token depends on


@final
class ViT(Encoder):
    """DINO, DINOv2 with and without registers, DINOv3, MAE, CLIP, SigLIP and others that give one token per patch.

    The image is resized (bilinear, antialiased) to whole patches and normalised as the model's preprocessor_config.json says,
    or with the statistics of its family. Position codes are interpolated to other sizes as the transformers library does.
    Frozen weights run without gradients, always in eval mode, and are not saved in checkpoints: keep `weights` where it is.

    Args:
        weights: local folder or hub id. Set OCL_OFFLINE=1 to forbid downloads.
        image_size: the shorter side is resized to it, rounded to whole patches; None keeps the size, rounded likewise.
        layer: None returns the last layer as the model ends it (usually normalised); k the bare output of its k-th block
            (1 is the first), and later blocks are dropped.
        trainable: fine-tune the weights, and save them in checkpoints.
        local_files_only: never download; None decides by OCL_OFFLINE and HF_HUB_OFFLINE.
    """

    def __init__(
        self,
        weights: str,
        *,
        image_size: int | None = None,
        layer: int | None = None,
        trainable: bool = False,
        local_files_only: bool | None = None,
    ) -> None:
        super().__init__()
        if image_size is not None and image_size < 1:
            raise ConfigError(f"ViT needs an image_size of at least 1, got {image_size}; None keeps the size of the image.")
        config, statistics = _describe(weights, local_files_only)
        read = partial(_load, weights, config, layer, local_files_only)
        later = is_postponing() and not trainable
        model = _shape(config, layer) if later or builds_on_meta() else read()
        self.image_size, self.layer, self.trainable = image_size, layer, trainable
        self.width: int = config.hidden_size
        self.patch: int = config.patch_size
        self.normalise = Normalise(statistics, owner="ViT")
        self.backbone = model if trainable else Frozen(read if later else model, files=partial(weight_files, weights))
        self._shuffles = config.model_type == "vit_mae"
        self._asks_for_positions = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def forward(self, image: Tensor) -> Features:
        """Image [B, 3, H, W] in [0, 1] -> one token per patch; without gradient unless `trainable`."""
        size = tuple(self._whole_patches(side, min(image.shape[-2:])) for side in image.shape[-2:])
        pixels = _resize(self.normalise(image), size)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            tokens = self._tokens(pixels)
        grid = (size[0] // self.patch, size[1] // self.patch)
        return Features(tokens[:, -grid[0] * grid[1] :], grid)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """[B, P + N, D]; class token and registers stand before the N patches, which stand row by row."""
        options: dict[str, object] = {}
        if self._asks_for_positions:
            options["interpolate_pos_encoding"] = True
        if self._shuffles:  # a masked autoencoder sorts patches by this noise, and keeps them all in order if it rises
            num_patches = pixels.shape[-2] * pixels.shape[-1] // self.patch**2
            options["noise"] = torch.arange(num_patches, device=pixels.device).expand(len(pixels), -1)
        model = self.backbone.module if isinstance(self.backbone, Frozen) else self.backbone
        tokens: Tensor = model(pixels.to(next(model.parameters()).dtype), **options).last_hidden_state
        return tokens

    def _whole_patches(self, side: int, shorter: int) -> int:
        wanted = side if self.image_size is None else side * self.image_size / shorter
        return max(round(wanted / self.patch), 1) * self.patch


def _resize(image: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", antialias=True)


def _describe(weights: str, local_files_only: bool | None) -> tuple[PretrainedConfig, Statistics]:
    """The vision model's config and its pixel statistics. On the meta device those of known models need no file."""
    config = _known_config(weights) if builds_on_meta() else None
    config = config or load_config(weights, local_files_only=local_files_only)
    config = getattr(config, "vision_config", config)
    if not isinstance(getattr(config, "patch_size", None), int) or not hasattr(config, "num_hidden_layers"):
        raise ConfigError(f"{weights} is a {config.model_type}, ViT needs a vision transformer with square patches.")
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    preprocessor = {} if builds_on_meta() else read_preprocessor(weights, local_files_only=local_files_only)
    return config, _statistics(config.model_type, preprocessor)


def _shape(config: PretrainedConfig, layer: int | None) -> nn.Module:
    """The bare vision model on the meta device."""
    with torch.device("meta"):
        return _bare(import_transformers().AutoModel.from_config(config), config, layer)


def _load(weights: str, config: PretrainedConfig, layer: int | None, local_files_only: bool | None) -> nn.Module:
    """The bare vision model with its weights."""
    return _bare(load_transformer(weights, config, unused=_NOT_IN_TOKENS, local_files_only=local_files_only), config, layer)


def _bare(model: nn.Module, config: PretrainedConfig, layer: int | None) -> nn.Module:
    """The part that makes tokens, up to `layer`; parameters that no token depends on are not trained."""
    model = getattr(model, "vision_model", model)
    for name, parameter in model.named_parameters():
        if set(name.split(".")) & {*_NOT_IN_TOKENS, "post_layernorm" if config.model_type.startswith("clip") else "head"}:
            parameter.requires_grad_(False)
    if layer is not None:
        _cut(model, config, layer)
    return model


def _known_config(weights: str) -> PretrainedConfig | None:
    if weights not in SIZES:
        return None
    model_type, sizes = SIZES[weights]
    config: PretrainedConfig = import_transformers().AutoConfig.for_model(model_type, **sizes)
    return config


def _statistics(model_type: str, preprocessor: dict[str, Any]) -> Statistics:
    if not preprocessor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if "image_mean" in preprocessor and "image_std" in preprocessor:
        return tuple(preprocessor["image_mean"]), tuple(preprocessor["image_std"])
    family = model_type.split("_")[0]
    return CLIP if family == "clip" else SIGNED if family in ("siglip", "siglip2") else IMAGENET


def _cut(model: nn.Module, config: PretrainedConfig, layer: int) -> None:
    """End the model after its `layer`-th block, without the norm that follows the last one."""
    depth = config.num_hidden_layers
    if not 1 <= layer <= depth:
        raise ConfigError(f"ViT has {depth} layers, got layer={layer}; pass 1 to {depth}, or None for the model's own output.")
    norms = [name for name in ("layernorm", "norm", "post_layernorm") if hasattr(model, name)]
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if not norms or len(stacks) != 1:
        raise ConfigError(f"ViT cannot cut a {config.model_type} after layer {layer}; leave layer=None.")
    del stacks[0][layer:]
    for name in norms:
        setattr(model, name, nn.Identity())
