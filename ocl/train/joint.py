"""What a denoiser with joint attention (SD3: Esser et al. 2024) would cost as a slot decoder: on paper, no slots reach one yet.

Slots and registers would stand where its prompt stands; key and value projections of that stream would be trained, as CODA trains
those of a cross-attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ocl.decoders.diffusion.known import JOINT
from ocl.decoders.diffusion.pipeline import import_diffusers, quiet_diffusers
from ocl.errors import ConfigError
from ocl.train.cost import Memory, PartCost, Precision, measured, on_fake_cpu, passed

_TRAINED = (".add_k_proj.", ".add_v_proj.")


def joint_denoiser(name: str) -> nn.Module:
    """The published model on the meta device; as much of it requires gradients as CODA would train."""
    if name not in JOINT:
        raise ConfigError(f"--denoiser knows {', '.join(JOINT)}, got {name!r}; pipelines with a U-Net are --model.weights.")
    kind, config = JOINT[name]
    with torch.device("meta"), quiet_diffusers():
        model: nn.Module = getattr(import_diffusers(), kind).from_config(dict(config))
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in f".{key}" for part in _TRAINED))
    return model.eval()


def joint_cost(model: nn.Module, image_size: tuple[int, int], *, num_tokens: int, contrast: bool) -> PartCost:
    """Operations for one image; those for slots of others are as many, but their backward reaches no weight."""
    with FlopCounterMode(display=False) as forward:
        loss = _loss(model, 1, image_size, num_tokens)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    counted = [float(counter.get_total_flops()) for counter in (forward, backward)]
    # A gradient of a weight is one more product of the size of its layer's forward product, over the tokens of that stream.
    to_weights = sum(2.0 * parameter.numel() * num_tokens for parameter in trained if parameter.ndim == 2)
    other = (counted[0], counted[1] - to_weights) if contrast else (0.0, 0.0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = [parameter.numel() for parameter in trained]
    return PartCost("denoiser", parameters, sum(sizes), counted[0], counted[1], other[0], other[1], largest=max(sizes))


def joint_memory(model: nn.Module, image_size: tuple[int, int], *, num_tokens: int, contrast: bool, precision: Precision) -> Memory:
    """As `ocl.train.cost.memory`, of the denoiser alone; both halves of a contrastive pass are decoded at once."""

    def run(size: int) -> tuple[float, float]:
        images = size * (2 if contrast else 1)
        with on_fake_cpu(model) as fake:
            return passed(lambda: _loss(fake, images, image_size, num_tokens), precision=precision)

    return measured(run)


def _loss(model: Any, size: int, image_size: tuple[int, int], num_tokens: int) -> Tensor:
    config = model.config
    place = next(model.parameters()).device
    latents = torch.empty(size, config["in_channels"], image_size[0] // 8, image_size[1] // 8, device=place)
    context = torch.empty(size, num_tokens, config["joint_attention_dim"], device=place, requires_grad=True)
    pooled = torch.empty(size, config["pooled_projection_dim"], device=place)
    time = torch.zeros(size, device=place)
    prediction: Tensor = model(latents, context, pooled, time, return_dict=False)[0]
    return prediction.square().mean()
