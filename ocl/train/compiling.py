"""torch.compile for a whole model, or for the backbone of its denoiser alone, where nearly all of a diffusion step is spent."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from ocl.errors import ConfigError
from ocl.interfaces import Denoiser
from ocl.nn.freezing import Frozen

Compile = bool | Literal["denoiser", "denoiser-graphs"]
CHOICES: tuple[str, ...] = get_args(get_args(Compile)[1])


def compiled(model: nn.Module, how: Compile, *, backend: str = "inductor") -> nn.Module:
    """The model as it is to be called; parameters keep their names.

    "denoiser" compiles the backbone of every denoiser in place and leaves the rest, whose random draws and Python values would
    break a graph, as it is. "denoiser-graphs" does so with mode="reduce-overhead", which is what there is of CUDA graphs: torch
    captures them where shapes are fixed, on CUDA only. Raises ConfigError where the model has no denoiser.
    """
    if how is False:
        return model
    if how is True:
        found: nn.Module = torch.compile(model, backend=backend)  # type: ignore[assignment]
        return found
    denoisers = [part for part in model.modules() if isinstance(part, Denoiser)]
    if not denoisers:
        raise ConfigError(f"training.compile={how} needs a latent-diffusion decoder; use true or false for other models.")
    for denoiser in denoisers:
        backbone = denoiser.backbone
        assert isinstance(backbone, Frozen)
        backbone.module.compile(mode="reduce-overhead" if how == "denoiser-graphs" else None, backend=backend)
    return model
