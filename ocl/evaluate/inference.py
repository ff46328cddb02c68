"""Running a trained model on images so that the result for one image depends on nothing but that image and a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from ocl.interfaces import SlotInit
from ocl.models.autoencoder import SlotAutoencoder
from ocl.nn.draws import generators, named_generator
from ocl.types import Batch, Output

MaskSource = Literal["slots", "decoder"]


@contextmanager
def inference(model: SlotAutoencoder) -> Iterator[None]:
    """No gradients and evaluation mode inside; the mode of every part is put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def run(model: SlotAutoencoder, batch: Batch, *, names: Sequence[str], seed: int, device: torch.device | str) -> Output:
    """The model's output for a batch, on `device`; all that is drawn for an image follows from `seed` and its name alone."""
    draws = generators(names, seed=seed, purpose="decoder")
    return model(batch.to(device), noise=slot_noise(model.init, names, seed=seed).to(device), generator=draws)


def slot_noise(init: SlotInit, names: Sequence[str], *, seed: int) -> Tensor:
    """Standard normal noise for the slots of each named image, float32 [B, K, slot_dim]; equal names get equal noise."""
    shape = (init.num_slots, init.slot_dim)
    return torch.stack([torch.randn(shape, generator=named_generator(name, seed=seed)) for name in names])


def masks_of(output: Output, source: MaskSource) -> Tensor | None:
    """Soft masks [B, K, h, w] of the slot module or of the decoder; None where the decoder draws none."""
    return output.slots.maps() if source == "slots" else output.decoding.masks
