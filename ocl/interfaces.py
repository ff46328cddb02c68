"""What each kind of part promises. Every class here is abstract, every class that implements one is final."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from ocl.types import Batch, Conditioning, Decoding, Features, Slots, Step


class Encoder(nn.Module, ABC):
    """Image [B, 3, H, W] in [0, 1] -> Features. Owns its normalisation, resizing and freezing."""

    width: int  # D of the tokens it returns

    @abstractmethod
    def forward(self, image: Tensor) -> Features: ...


class SlotInit(nn.Module, ABC):
    """Where slots start: [B, K, D]. All randomness comes from `generator`, or is handed in as `noise` [B, K, D] ~ N(0, 1)."""

    num_slots: int
    slot_dim: int

    @abstractmethod
    def forward(self, batch_size: int, *, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor: ...


class SlotModule(nn.Module, ABC):
    """(Features, initial slots [B, K, slot_dim]) -> Slots whose vectors are [B, K, out_dim]."""

    feature_dim: int
    slot_dim: int
    out_dim: int

    @abstractmethod
    def forward(self, features: Features, init: Tensor) -> Slots: ...


class Decoder(nn.Module, ABC):
    """(Slots, Batch, Features) -> Decoding. Chooses its own target: pixels, features, or noise."""

    slot_dim: int

    @abstractmethod
    def forward(self, slots: Slots, batch: Batch, features: Features) -> Decoding: ...


class RegisterBank(nn.Module, ABC):
    """Tokens [R, C] that stand beside the slots for the whole batch and soak up attention that belongs to no slot."""

    @abstractmethod
    def forward(self) -> Tensor | None: ...


class Conditioner(nn.Module, ABC):
    """Slots -> what the denoiser attends to."""

    @abstractmethod
    def forward(self, slots: Slots) -> Conditioning: ...


class Denoiser(nn.Module, ABC):
    """(noisy latent [B, C, h, w], timestep [B], Conditioning) -> prediction of the latent's shape."""

    @abstractmethod
    def forward(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor: ...


class Loss(nn.Module, ABC):
    """One forward pass -> a scalar to minimise."""

    @abstractmethod
    def forward(self, step: Step) -> Tensor: ...


class Metric(ABC):
    """A sum over images that can be merged over batches and processes before it is read."""

    @abstractmethod
    def update(self, pred: Tensor, batch: Batch) -> None:
        """Count one batch; pred: integer labels [B, H, W] at the size of the ground truth."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """The metric over both sets of images; neither is changed."""

    @abstractmethod
    def compute(self) -> Mapping[str, float]:
        """Name -> value; NaN where no image could be scored."""
