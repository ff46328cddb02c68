"""What each kind of part promises. Every class here is abstract, every class that implements one is final."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from ocl.types import Batch, Conditioning, Decoding, Denoised, Features, Mismatch, Randomness, Slots, Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class Part(ABCMeta):
    """Metaclass of all parts: an instance remembers the arguments it was made with, `made_with`, so that it can be made again."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if "__init__" in namespace:
            type.__setattr__(cls, "__init__", _remembering(namespace["__init__"]))


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def remember(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.made_with = dict(list(signature.bind(self, *args, **options).arguments.items())[1:])

    return remember


class Encoder(nn.Module, metaclass=Part):
    """Image [B, 3, H, W] in [0, 1] -> Features. Owns its normalisation, resizing and freezing."""

    width: int  # D of the tokens it returns
    made_with: dict[str, Any]

    @abstractmethod
    def forward(self, image: Tensor) -> Features: ...


class SlotInit(nn.Module, metaclass=Part):
    """Where slots start: [B, K, D]. All randomness comes from `generator`, or is handed in as `noise` [B, K, D] ~ N(0, 1)."""

    num_slots: int
    slot_dim: int

    @abstractmethod
    def forward(self, batch_size: int, *, generator: Randomness = None, noise: Tensor | None = None) -> Tensor: ...


class SlotModule(nn.Module, metaclass=Part):
    """(Features, initial slots [B, K, slot_dim]) -> Slots whose vectors are [B, K, out_dim]."""

    feature_dim: int
    slot_dim: int
    out_dim: int

    @abstractmethod
    def forward(self, features: Features, init: Tensor) -> Slots: ...


class Decoder(nn.Module, metaclass=Part):
    """(Slots, Batch, Features) -> Decoding. Chooses its own target: pixels, features, or noise.

    A decoder that draws random numbers takes all of them from `generator`; others ignore it.
    """

    slot_dim: int
    made_with: dict[str, Any]

    @abstractmethod
    def forward(self, slots: Slots, batch: Batch, features: Features, *, generator: Randomness = None) -> Decoding: ...


class ContrastiveDecoder(Decoder, ABC):
    """A decoder that can decode slots of other images beside the image's own, against the same target.

    `contrast` fills `Decoding.contrast`, whose gradient reaches the slots and, with `stop_gradient`, no weight of the decoder.
    """

    @abstractmethod
    def forward(
        self,
        slots: Slots,
        batch: Batch,
        features: Features,
        *,
        generator: Randomness = None,
        contrast: Slots | None = None,
        stop_gradient: bool = True,
    ) -> Decoding: ...


class RegisterBank(nn.Module, metaclass=Part):
    """Tokens [R, C] that stand beside the slots for the whole batch and soak up attention that belongs to no slot."""

    width: int  # C
    made_with: dict[str, Any]

    @abstractmethod
    def forward(self) -> Tensor: ...


class Conditioner(nn.Module, metaclass=Part):
    """Slots -> what the denoiser attends to. Slots that are not `active` are neither attended nor pooled."""

    @abstractmethod
    def forward(self, slots: Slots) -> Conditioning: ...


class Denoiser(nn.Module, metaclass=Part):
    """(noisy latent [B, C, h, w], timestep [B], Conditioning) -> prediction of the latent's shape.

    contrast: another conditioning of the same latents; its prediction sends gradient to it and to no weight.
    """

    context_dim: int  # C of the conditioning
    latent_channels: int

    @abstractmethod
    def forward(
        self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning, contrast: Conditioning | None = None
    ) -> Denoised: ...

    @abstractmethod
    def reusing_projections(self) -> AbstractContextManager[None]:
        """Inside, what depends on the conditioning alone is computed in the first pass; it and the weights must not change."""


class Loss(nn.Module, metaclass=Part):
    """One forward pass -> a scalar to minimise."""

    @abstractmethod
    def forward(self, step: Step) -> Tensor: ...

    def mismatch(self, index: int) -> Mismatch | None:
        """Which slots of other images update number `index` shall decode as well; None, as for most losses, for none."""
        return None


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
