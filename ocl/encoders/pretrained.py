"""An encoder of ours with weights that an earlier run learned, frozen, as published backbones are."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ocl.errors import CheckpointError
from ocl.interfaces import Encoder
from ocl.nn.freezing import Frozen, load_trainable_state_dict, parts_of
from ocl.nn.hub import builds_on_meta
from ocl.types import Features


@final
class PretrainedEncoder(Encoder):
    """Reads the tensors of one encoder out of a model's file, runs without gradient, and is neither trained nor saved.

    Args:
        encoder: the architecture, as the weights were trained with.
        weights: a safetensors file, such as model.safetensors of a run's checkpoint.
        prefix: what the names of its tensors begin with in that file; "" for a file of the encoder alone.
    """

    def __init__(self, encoder: Encoder, weights: Path, *, prefix: str = "encoder.") -> None:
        super().__init__()
        if not builds_on_meta():
            load_trainable_state_dict(encoder, _read(Path(weights), prefix))
        self.width = encoder.width
        self.encoder = Frozen(encoder)

    def forward(self, image: Tensor) -> Features:
        """Image [B, 3, H, W] in [0, 1] -> the encoder's tokens, without gradient."""
        with torch.no_grad():
            found: Features = self.encoder.module(image)
        return found


def _read(path: Path, prefix: str) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); pass weights of a trained encoder.") from error
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not found:
        names = parts_of(tensors)
        raise CheckpointError(f"{path} holds no tensor whose name begins with {prefix!r}, only {names}; pass another prefix.")
    return found
