"""The part of a model before its first cross-attention sees the latents only: two conditionings of the same latents share it."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from ocl.decoders.diffusion.cross_attention import Pass


@final
class SharedTrunk:
    """Hooks that compute a module for the first half of a doubled batch and repeat the result, where `state.shared` is set."""

    def __init__(self, state: Pass) -> None:
        self.state = state

    def install(self, modules: list[nn.Module]) -> None:
        for module in modules:
            module.register_forward_pre_hook(self._first_half, with_kwargs=True)
            module.register_forward_hook(self._twice)

    def _first_half(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.state.shared:
            return None
        return tuple(map(_half, args)), {name: _half(value) for name, value in kwargs.items()}

    def _twice(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.cat([output, output]) if self.state.shared else output


def unet_trunk(unet: Any) -> list[nn.Module]:
    """The modules of a diffusers U-Net that run before its first cross-attention, in the order they are called."""
    found: list[nn.Module] = [unet.conv_in]
    for block in unet.down_blocks:
        if not getattr(block, "has_cross_attention", False):
            found += [*block.resnets, *(block.downsamplers or [])]
            continue
        transformer = block.attentions[0]
        first = transformer.transformer_blocks[0]
        return [*found, block.resnets[0], transformer.norm, transformer.proj_in, first.norm1, first.attn1, first.norm2]
    return found


def transformer_trunk(transformer: Any) -> list[nn.Module]:
    """The same for a PixArt or Sana transformer: patches and the first self-attention."""
    patches = transformer.pos_embed if hasattr(transformer, "pos_embed") else transformer.patch_embed
    first = transformer.transformer_blocks[0]
    return [patches, first.norm1, first.attn1]


def _half(value: Any) -> Any:
    return value[: len(value) // 2] if isinstance(value, Tensor) and value.ndim > 0 else value
