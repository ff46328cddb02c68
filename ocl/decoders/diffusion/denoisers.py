"""Denoisers of published latent-diffusion pipelines whose cross-attention reads slots and registers in place of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from ocl.decoders.diffusion.checkpointing import Checkpointing, enable_checkpointing
from ocl.decoders.diffusion.cross_attention import Pass, Projection, SlotCrossAttention, cross_attentions, train_projections
from ocl.decoders.diffusion.pipeline import has_part, load_part
from ocl.decoders.diffusion.self_attention import SelfAttention
from ocl.decoders.diffusion.trunk import SharedTrunk, transformer_trunk, unet_trunk
from ocl.errors import ConfigError, ShapeError
from ocl.interfaces import Denoiser
from ocl.nn.freezing import Frozen
from ocl.types import Conditioning, Denoised

Passes = Literal["merged", "separate"]
Run = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(noisy, timestep, context [B, L, C], mask [B, L] or None) -> prediction: one call of a diffusers model."""

KEY_VALUE_OUTPUT: tuple[Projection, ...] = ("to_k", "to_v", "to_out")


@final
class LatentUNet(Denoiser):
    """The U-Net of a Stable Diffusion pipeline (1.x, 2.x, XL), frozen but for named projections of its cross-attentions.

    An XL U-Net is also told a pooled prompt and a picture size: zeros, as its authors do for the empty prompt, and the size
    that the latents have.

    Args:
        weights: pipeline folder or hub id; its `unet` is used.
        trained: projections of every cross-attention that are trained and saved; [] for none.
        passes: "merged" decodes slots and slots of other images in one pass of twice the batch, "separate" in two.
        share_trunk: compute what lies before the first cross-attention once for both (merged passes only).
        checkpointing: compute activations again in the backward pass to save memory; "selective" keeps the results of
            matrix products, convolutions and attention and computes only the cheap rest again.
        local_files_only: never download; None decides by OCL_OFFLINE and HF_HUB_OFFLINE.
    """

    def __init__(
        self,
        weights: str,
        *,
        trained: tuple[Projection, ...] = KEY_VALUE_OUTPUT,
        passes: Passes = "merged",
        share_trunk: bool = True,
        checkpointing: Checkpointing = False,
        local_files_only: bool | None = None,
    ) -> None:
        super().__init__()
        unet = load_part(weights, "unet", expected=("UNet2DConditionModel",), local_files_only=local_files_only)
        self.context_dim, self.latent_channels = unet_sizes(unet)
        self.passes = passes
        self.state = Pass()
        self.backbone = Frozen(unet)
        attend_to_slots(unet, self.state, trained)
        if share_trunk:
            SharedTrunk(self.state).install(unet_trunk(unet))
        self.share_trunk = share_trunk
        self.checkpointing = checkpointing
        if checkpointing:
            enable_checkpointing(unet, self.state, selective=checkpointing == "selective")

    def forward(
        self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning, contrast: Conditioning | None = None
    ) -> Denoised:
        """noisy [B, C, h, w], timestep [B]; conditioning of width context_dim -> predictions like noisy."""
        check_latents(self, noisy, conditioning)
        prediction, wrong = predict(
            self._run, self.state, noisy, timestep, conditioning, contrast, passes=self.passes, share_trunk=self.share_trunk
        )
        return Denoised(prediction, wrong)

    def reusing_projections(self) -> AbstractContextManager[None]:
        """Inside, keys and values are projected in the first pass only; conditioning and weights must stay the same."""
        return self.state.reusing_projections()

    def _run(self, noisy: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        return run_unet(self.backbone.module, noisy, timestep, context, mask)


@final
class LatentTransformer(Denoiser):
    """The transformer of a PixArt or Sana pipeline, frozen but for named projections of its cross-attentions.

    Slots and registers pass the model's own caption projection, as prompts do. Where a Sana config has a `timestep_scale`, the
    model is told times multiplied by it, as its pipeline does.

    Args:
        weights: pipeline folder or hub id; its `transformer` is used.
        trained: projections of every cross-attention that are trained and saved; [] for none.
        passes: "merged" decodes slots and slots of other images in one pass of twice the batch, "separate" in two.
        share_trunk: compute what lies before the first cross-attention once for both (merged passes only).
        checkpointing: compute activations again in the backward pass to save memory; "selective" keeps the results of
            matrix products, convolutions and attention and computes only the cheap rest again.
        local_files_only: never download; None decides by OCL_OFFLINE and HF_HUB_OFFLINE.
    """

    def __init__(
        self,
        weights: str,
        *,
        trained: tuple[Projection, ...] = KEY_VALUE_OUTPUT,
        passes: Passes = "merged",
        share_trunk: bool = True,
        checkpointing: Checkpointing = False,
        local_files_only: bool | None = None,
    ) -> None:
        super().__init__()
        kinds = ("PixArtTransformer2DModel", "SanaTransformer2DModel")
        model = load_part(weights, "transformer", expected=kinds, local_files_only=local_files_only)
        self.context_dim = int(model.config["caption_channels"])
        self.latent_channels = int(model.config["in_channels"])
        self.passes, self.share_trunk = passes, share_trunk
        self.state = Pass()
        self.backbone = Frozen(model)
        attend_to_slots(model, self.state, trained)
        if share_trunk:
            SharedTrunk(self.state).install(transformer_trunk(model))
        self.checkpointing = checkpointing
        if checkpointing:
            enable_checkpointing(model, self.state, selective=checkpointing == "selective")

    def forward(
        self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning, contrast: Conditioning | None = None
    ) -> Denoised:
        """noisy [B, C, h, w], timestep [B]; conditioning of width context_dim -> predictions like noisy."""
        check_latents(self, noisy, conditioning)
        prediction, wrong = predict(
            self._run, self.state, noisy, timestep, conditioning, contrast, passes=self.passes, share_trunk=self.share_trunk
        )
        return Denoised(prediction, wrong)

    def reusing_projections(self) -> AbstractContextManager[None]:
        """Inside, keys and values are projected in the first pass only; conditioning and weights must stay the same."""
        return self.state.reusing_projections()

    def _run(self, noisy: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        model: Any = self.backbone.module
        noisy, context = _like_weights(model, noisy, context)
        more: dict[str, Any] = {}
        if type(model).__name__ == "PixArtTransformer2DModel":
            more["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
            if model.use_additional_conditions:
                more["added_cond_kwargs"] = _pixart_sizes(model, noisy)
        if (scale := model.config.get("timestep_scale") or 1.0) != 1.0:
            timestep = timestep * scale
        output: Tensor = model(
            noisy, encoder_hidden_states=context, timestep=timestep, encoder_attention_mask=mask, return_dict=False, **more
        )[0]
        return output[:, : self.latent_channels]  # a learned variance, where there is one, follows the prediction


def latent_denoiser(
    weights: str, *, trained: tuple[Projection, ...] = KEY_VALUE_OUTPUT, passes: Passes = "merged", share_trunk: bool = True,
    checkpointing: Checkpointing = False, local_files_only: bool | None = None,
) -> LatentUNet | LatentTransformer:  # fmt: skip
    """Whichever of both fits the pipeline. Raises CheckpointError where it has neither a unet nor a transformer."""
    kind = LatentTransformer if has_part(weights, "transformer", local_files_only=local_files_only) else LatentUNet
    return kind(weights, trained=trained, passes=passes, share_trunk=share_trunk, checkpointing=checkpointing,
                local_files_only=local_files_only)  # fmt: skip


def predict(
    run: Run, state: Pass, noisy: Tensor, timestep: Tensor, conditioning: Conditioning, contrast: Conditioning | None, *,
    passes: Passes, share_trunk: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The predictions under the conditioning and, detached from the weights, under `contrast`: in one pass or in two."""
    if contrast is None:
        return _single(run, state, noisy, timestep, conditioning, detached=False), None
    if passes == "separate":
        wrong = _single(run, state, noisy, timestep, contrast, detached=True)
        return _single(run, state, noisy, timestep, conditioning, detached=False), wrong
    context, registers, text = _pack(conditioning)
    other, *_ = _pack(contrast)
    detached = len(noisy) if torch.is_grad_enabled() else 0  # without gradients both halves are one
    state.set(num_registers=registers, num_text=text, detached=detached, shared=share_trunk)
    masks = [_pack_mask(each, context.shape[1]) for each in (conditioning, contrast)]
    mask = None if masks == [None, None] else torch.cat([_or_all(found, context) for found in masks])
    both = run(torch.cat([noisy, noisy]), torch.cat([timestep, timestep]), torch.cat([context, other]), mask)
    prediction, wrong = both.chunk(2)
    return prediction, wrong


def _single(run: Run, state: Pass, noisy: Tensor, timestep: Tensor, conditioning: Conditioning, *, detached: bool) -> Tensor:
    context, registers, text = _pack(conditioning)
    state.set(num_registers=registers, num_text=text, detached=len(noisy) if detached else 0, shared=False)
    return run(noisy, timestep, context, _pack_mask(conditioning, context.shape[1]))


def _pack(conditioning: Conditioning) -> tuple[Tensor, int, int]:
    """(slots, then registers or text, as one tensor [B, L, C]; how many registers; how many text tokens)."""
    slots, registers, text = conditioning.slots, conditioning.registers, conditioning.text
    if text is not None:
        return torch.cat([slots, text], dim=1), 0, text.shape[1]
    if registers is None:
        return slots, 0, 0
    return torch.cat([slots, registers.expand(len(slots), -1, -1)], dim=1), len(registers), 0


def _pack_mask(conditioning: Conditioning, length: int) -> Tensor | None:
    """bool [B, L], true for what is attended; None where everything is."""
    if conditioning.slot_mask is None:
        return None
    more = length - conditioning.slots.shape[1]
    return nn.functional.pad(conditioning.slot_mask, (0, more), value=True)


def _or_all(mask: Tensor | None, context: Tensor) -> Tensor:
    return torch.ones(context.shape[:2], dtype=torch.bool, device=context.device) if mask is None else mask


def attend_to_slots(model: nn.Module, state: Pass, trained: tuple[Projection, ...]) -> None:
    """Give every attention layer of a diffusers model a processor of ours, and train some projections of cross-attentions."""
    SelfAttention.install(model)
    for index, (name, layer) in enumerate(cross_attentions(model).items()):
        layer.set_processor(SlotCrossAttention(name, state, first=index == 0))
        train_projections(layer, trained)


def unet_sizes(unet: Any) -> tuple[int, int]:
    """(conditioning width, latent channels) of a diffusers U-Net. Raises ConfigError for one that is told more than ours is."""
    config = unet.config
    widths = config["cross_attention_dim"]
    widths = {*widths} if isinstance(widths, (list, tuple)) else {widths}
    unknown = [name for name in ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim") if config.get(name) is not None]
    if config.get("addition_embed_type") not in (None, "text_time"):
        unknown.append("addition_embed_type")
    if len(widths) > 1 or unknown or config["in_channels"] != config["out_channels"]:
        raise ConfigError(f"this U-Net is told more than latents, time and a prompt ({', '.join(unknown) or 'see its config'}); "
                          "pass a text-to-image Stable Diffusion 1.x, 2.x or XL.")  # fmt: skip
    return int(widths.pop()), int(config["in_channels"])


def run_unet(unet: Any, noisy: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """One call of a diffusers U-Net in the precision of its weights, with the extra inputs of an XL one."""
    noisy, context = _like_weights(unet, noisy, context)
    more = {}
    if unet.config.get("addition_embed_type") == "text_time":
        more["added_cond_kwargs"] = _xl_conditions(unet, noisy)
    output: Tensor = unet(noisy, timestep, encoder_hidden_states=context, encoder_attention_mask=mask, return_dict=False, **more)[0]
    return output


def _like_weights(model: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = next(model.parameters()).dtype
    return tuple(tensor.to(dtype) for tensor in tensors)


def _xl_conditions(unet: Any, noisy: Tensor) -> dict[str, Tensor]:
    """Original size, crop corner and target size in pixels (8 per cell), and a pooled prompt of zeros."""
    height, width = (8.0 * side for side in noisy.shape[-2:])
    sizes = noisy.new_tensor([height, width, 0.0, 0.0, height, width])
    pooled = unet.config["projection_class_embeddings_input_dim"] - 6 * unet.config["addition_time_embed_dim"]
    return {"time_ids": sizes.expand(len(noisy), 6), "text_embeds": noisy.new_zeros(len(noisy), pooled)}


def _pixart_sizes(model: Any, noisy: Tensor) -> dict[str, Tensor]:
    """Picture size in pixels (8 per cell) and its ratio of height to width, of each image."""
    height, width = (8.0 * side for side in noisy.shape[-2:])
    return {
        "resolution": noisy.new_tensor([[height, width]]).expand(len(noisy), 2),
        "aspect_ratio": noisy.new_tensor([[height / width]]).expand(len(noisy), 1),
    }


def check_latents(denoiser: Denoiser, noisy: Tensor, conditioning: Conditioning) -> None:
    name = type(denoiser).__name__
    if noisy.ndim != 4 or noisy.shape[1] != denoiser.latent_channels:
        raise ShapeError(f"{name} expects latents [B, {denoiser.latent_channels}, h, w], got {list(noisy.shape)}.")
    if conditioning.slots.shape[-1] != denoiser.context_dim:
        raise ShapeError(
            f"{name} expects conditioning of width {denoiser.context_dim}, got {list(conditioning.slots.shape)}; "
            f"pass SlotAttention(out_dim={denoiser.context_dim})."
        )
