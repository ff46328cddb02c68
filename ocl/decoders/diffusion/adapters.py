"""Layers of their own for slots beside a frozen text cross-attention: SlotAdapt (Akan & Yemez 2025).

Published: the order self-attention, text cross-attention with a register token, adapter; adapters in all down and up blocks and
none in the middle; the guidance loss compares the maps of the third up block. Ours, where the paper is silent: an adapter has
the shape of the text cross-attention it follows, a LayerNorm without weights before it, and an output that starts at zero; a
dropped image has no slot to pool, so that its text token is zero.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn

from ocl.decoders.diffusion.checkpointing import Checkpointing, enable_checkpointing
from ocl.decoders.diffusion.cross_attention import Pass, SlotCrossAttention, TextCrossAttention, cross_attentions, train_projections
from ocl.decoders.diffusion.denoisers import Passes, check_latents, predict, run_unet, unet_sizes
from ocl.decoders.diffusion.pipeline import load_part
from ocl.decoders.diffusion.self_attention import SelfAttention
from ocl.decoders.diffusion.trunk import SharedTrunk, unet_trunk
from ocl.errors import ConfigError
from ocl.interfaces import Denoiser
from ocl.nn.freezing import Frozen
from ocl.types import Conditioning, Denoised


@final
class AdaptedUNet(Denoiser):
    """The U-Net of a Stable Diffusion pipeline, all frozen, with a trained cross-attention to slots in every down and up block.

    `Denoised.maps` are the adapters' attention in one up block, mean over its layers and heads, [B, K, h, w]. They sum to 1
    over the slots.

    Args:
        weights: pipeline folder or hub id; its `unet` is used.
        map_block: up block whose attention is returned, counted from 0; negative from the last. 2 is the third of four.
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
        map_block: int = 2,
        passes: Passes = "merged",
        share_trunk: bool = True,
        checkpointing: Checkpointing = False,
        local_files_only: bool | None = None,
    ) -> None:
        super().__init__()
        unet = load_part(weights, "unet", expected=("UNet2DConditionModel",), local_files_only=local_files_only)
        self.context_dim, self.latent_channels = unet_sizes(unet)
        self.passes, self.share_trunk = passes, share_trunk
        self.state = Pass()
        self.backbone = Frozen(unet)
        names = insert_adapters(unet, self.state)
        self.map_layers = _layers_of_up_block(unet, names, map_block)
        if share_trunk:
            SharedTrunk(self.state).install(unet_trunk(unet))
        self.checkpointing = checkpointing
        if checkpointing:
            enable_checkpointing(unet, self.state, selective=checkpointing == "selective")

    def forward(
        self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning, contrast: Conditioning | None = None
    ) -> Denoised:
        """noisy [B, C, h, w], timestep [B]; slots and text of width context_dim -> predictions like noisy, and maps."""
        check_latents(self, noisy, conditioning)
        if conditioning.text is None:
            raise ConfigError("AdaptedUNet needs a conditioner that gives a text token; pass conditioner=PooledSlots().")
        with self.state.recording(self.map_layers):
            prediction, wrong = predict(
                self._run, self.state, noisy, timestep, conditioning, contrast, passes=self.passes, share_trunk=self.share_trunk
            )
        maps = torch.stack([self.state.maps[name][: len(noisy)] for name in self.map_layers]).mean(0)
        return Denoised(prediction, wrong, maps.unflatten(-1, _grid(noisy, maps.shape[-1])))

    def reusing_projections(self) -> AbstractContextManager[None]:
        """Inside, keys and values are projected in the first pass only; conditioning and weights must stay the same."""
        return self.state.reusing_projections()

    def _run(self, noisy: Tensor, timestep: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        return run_unet(self.backbone.module, noisy, timestep, context, mask)


@final
class AdaptedBlock(nn.Module):
    """A diffusers transformer block with an adapter between its text cross-attention and its feed-forward layer."""

    def __init__(self, block: Any, name: str, state: Pass, *, context_dim: int) -> None:
        super().__init__()
        if block.norm_type != "layer_norm":
            raise ConfigError(f"adapters fit blocks with plain layer norms, this U-Net has {block.norm_type}.")
        self.block, self.state = block, state
        width, text = block.attn2.to_q.in_features, block.attn2
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.adapter = type(text)(width, context_dim, heads=text.heads, dim_head=text.to_q.out_features // text.heads)
        self.adapter.set_processor(SlotCrossAttention(name, state))
        train_projections(self.adapter, ("to_q", "to_k", "to_v", "to_out"))
        nn.init.zeros_(self.adapter.to_out[0].weight)
        nn.init.zeros_(self.adapter.to_out[0].bias)

    @property
    def norm1(self) -> nn.Module:
        return self.block.norm1

    @property
    def attn1(self) -> nn.Module:
        return self.block.attn1

    @property
    def norm2(self) -> nn.Module:
        return self.block.norm2

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Called by diffusers as it calls the block itself; the conditioning is slots, then text."""
        assert encoder_hidden_states is not None
        block, x = self.block, hidden_states
        num_slots = encoder_hidden_states.shape[1] - self.state.num_text
        slot_mask = None if encoder_attention_mask is None else encoder_attention_mask[..., :num_slots]
        x = x + block.attn1(block.norm1(x))
        x = x + block.attn2(block.norm2(x), encoder_hidden_states=encoder_hidden_states)
        x = x + self.adapter(self.norm(x), encoder_hidden_states=encoder_hidden_states[:, :num_slots], attention_mask=slot_mask)
        return x + block.ff(block.norm3(x))


def insert_adapters(unet: nn.Module, state: Pass) -> list[str]:
    """Adapt every transformer block of the down and up blocks; all text cross-attentions see the text only. Returns the names."""
    SelfAttention.install(unet)
    layers = cross_attentions(unet)
    context_dim = next(iter(layers.values())).to_k.in_features
    for layer in layers.values():
        layer.set_processor(TextCrossAttention(state, layer.processor))
    names = [name.removesuffix(".attn2") for name in layers if name.startswith(("down_blocks", "up_blocks"))]
    for name in names:
        parent, _, index = name.rpartition(".")
        blocks: Any = unet.get_submodule(parent)
        blocks[int(index)] = AdaptedBlock(blocks[int(index)], name, state, context_dim=context_dim)
    return names


def _layers_of_up_block(unet: Any, names: list[str], index: int) -> list[str]:
    count = len(unet.up_blocks)
    if not -count <= index < count:
        raise ConfigError(f"this U-Net has {count} up blocks, got map_block={index}.")
    found = [name for name in names if name.startswith(f"up_blocks.{index % count}.")]
    if not found:
        having = sorted({name.split(".")[1] for name in names if name.startswith("up_blocks")})
        raise ConfigError(f"up block {index} of this U-Net has no cross-attention; those with one: {', '.join(having)}.")
    return found


def _grid(noisy: Tensor, num_queries: int) -> tuple[int, int]:
    """Grid of a layer with so many queries: the latent's, halved some times (rounded up, as strided convolutions do)."""
    height, width = noisy.shape[-2:]
    while height * width > num_queries:
        height, width = -(-height // 2), -(-width // 2)
    return height, width
