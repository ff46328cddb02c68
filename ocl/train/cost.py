"""What one pass of a model costs, found without weights and without computing: parameters, operations by part, bytes.

Operations are counted on the meta device by torch's FlopCounterMode (matrix products, convolutions and attention; a multiplication
and an addition are two). Bytes are counted on fake tensors: every storage that is alive is added up after every operation.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ocl.decoders import LatentDiffusion
from ocl.models import SlotAutoencoder
from ocl.ops import backend
from ocl.slots.mismatch import swapped
from ocl.train.engine import DTYPES
from ocl.types import Batch, Features, Mismatch, Moments, Slots

Precision = Literal["fp32", "bf16", "fp16"]
_SIZES = (2, 256)  # batches of fake tensors, which cost nothing


@dataclass(frozen=True)
class PartCost:
    """One part of a model. Operations are those of one image in one training step; frozen parts have no backward.

    contrast: operations for slots of other images, after what they share with the image's own. cacheable: gives the same at
    every step, so that `ocl cache` saves it. largest: numbers in the largest trained tensor.
    """

    name: str
    parameters: int
    trained: int
    forward: float = 0.0
    backward: float = 0.0
    contrast: float = 0.0
    contrast_backward: float = 0.0
    cacheable: bool = False
    largest: int = 0

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.contrast + self.contrast_backward


@dataclass(frozen=True)
class Memory:
    """Bytes of one training pass beyond weights, gradients and optimizer: `fixed`, and for each image, at the peak.

    saved: what each image leaves for the backward pass when the forward pass ends.
    """

    fixed: float
    per_image: float
    saved: float

    def at(self, batch_size: int) -> float:
        return self.fixed + batch_size * self.per_image


def part_costs(model: SlotAutoencoder, image_size: tuple[int, int], *, contrast: bool) -> list[PartCost]:
    """Every part of a model on the meta device, in the order they run. contrast: slots of other images are decoded as well."""
    model = copy.deepcopy(model)  # a pass leaves gradients and maps behind
    image = torch.empty(1, 3, *image_size, device="meta")
    decoder = model.decoder
    with backend("reference"):
        encoder_forward, features = _counted(lambda: model.encoder(image))
        is_frozen = not _trained(model.encoder)
        encoder_backward = 0.0 if is_frozen else _backward_of(features.tokens.sum())
        tokens = features.tokens.detach().requires_grad_(not is_frozen)
        start = torch.empty(1, model.init.num_slots, model.init.slot_dim, device="meta", requires_grad=True)
        slots_forward, slots = _counted(lambda: model.slot_module(Features(tokens, features.grid), start))
        slots_backward = _backward_of(slots.vectors.sum())
        batch = Batch(image, features=features)
        moments_forward = 0.0
        if isinstance(decoder, LatentDiffusion):
            autoencoder = decoder.autoencoder
            moments_forward, moments = _counted(lambda: autoencoder.moments(image))
            batch = replace(batch, moments=moments)
        own = _decoded(decoder, slots, batch, contrast=False)
        both = _decoded(decoder, slots, batch, contrast=True) if contrast else own
    rows = [
        _cost("encoder", model.encoder, encoder_forward, encoder_backward, cacheable=is_frozen),
        _cost("slots", nn.ModuleList([model.init, model.slot_module]), slots_forward, slots_backward),
    ]
    name: str = "decoder"
    rest: nn.Module = decoder
    if isinstance(decoder, LatentDiffusion):
        rows.append(_cost("autoencoder", decoder.autoencoder, moments_forward, cacheable=True))
        name, rest = "denoiser", nn.ModuleList([decoder.denoiser, decoder.conditioner])
    more = (both[0] - own[0], both[1] - own[1])
    return [*rows, _cost(name, rest, *own, *more)]


def memory(
    model: SlotAutoencoder, image_size: tuple[int, int], *, contrast: bool, precision: Precision = "fp32", cached: bool = False
) -> Memory:
    """Bytes of one pass of a model on the meta device. cached: features and latents come with the batch."""
    return measured(lambda size: _peak(model, image_size, size, contrast=contrast, precision=precision, cached=cached))


def measured(run: Callable[[int], tuple[float, float]]) -> Memory:
    """run: batch size -> (bytes saved for the backward pass, bytes at the peak).

    From a small and a large batch: in a small one the peak may be that of gradients, which tells nothing about an image. The
    largest of several lines lies below the one through two of its points, so that nothing between them is counted too low.
    """
    small, large = _SIZES
    (saved, peak), (more_saved, more_peak) = run(small), run(large)
    per_image = (more_peak - peak) / (large - small)
    return Memory(peak - small * per_image, per_image, (more_saved - saved) / (large - small))


class LiveBytes(TorchDispatchMode):
    """Inside, adds up the bytes of every storage that operations make and that is still alive: `now`, and `peak` so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size


@contextmanager
def on_fake_cpu(model: nn.Module) -> Iterator[Any]:
    """Inside, a copy of a meta model whose tensors say that they lie on the CPU and hold nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    copied = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield copied.to_empty(device="cpu")


def passed(forward: Callable[[], Tensor], *, precision: Precision) -> tuple[int, int]:
    """(bytes left for the backward pass, peak bytes) of a pass that ends in a scalar; on fake tensors."""
    dtype = DTYPES.get(precision, torch.bfloat16)
    with LiveBytes() as live:
        with torch.autocast("cpu", dtype=dtype, enabled=precision != "fp32"):
            loss = forward()
        saved = live.now
        loss.backward()
    return saved, live.peak


def _peak(
    model: SlotAutoencoder, image_size: tuple[int, int], size: int, *, contrast: bool, precision: Precision, cached: bool
) -> tuple[int, int]:
    with on_fake_cpu(model) as fake:
        fake.train()
        batch = Batch(torch.empty(size, 3, *image_size))
        if cached:
            batch = _with_computed(fake, batch)

        def forward() -> Tensor:
            decoding = fake(batch, mismatch=Mismatch() if contrast else None).decoding
            loss: Tensor = decoding.error().mean()
            return loss - decoding.contrast_error().mean() if contrast else loss

        return passed(forward, precision=precision)


@torch.no_grad()
def _with_computed(model: SlotAutoencoder, batch: Batch) -> Batch:
    features = None if _trained(model.encoder) else model.encoder(batch.image)
    moments: Moments | None = None
    if isinstance(model.decoder, LatentDiffusion):
        moments = model.decoder.autoencoder.moments(batch.image)
    return replace(batch, features=features, moments=moments)


def _decoded(decoder: Any, slots: Slots, batch: Batch, *, contrast: bool) -> tuple[float, float]:
    """Operations (forward, backward) of decoding an image's own slots, and those of others in the same pass."""
    assert batch.features is not None
    detached = replace(slots, vectors=slots.vectors.detach().requires_grad_(), attn=slots.attn.detach())
    more = {"contrast": swapped(detached, Mismatch())} if contrast else {}
    forward, decoding = _counted(lambda: decoder(detached, batch, batch.features, **more))
    loss = decoding.error().sum() + (decoding.contrast_error().sum() if contrast else 0)
    return forward, _backward_of(loss)


def _counted(run: Callable[[], Any]) -> tuple[float, Any]:
    with FlopCounterMode(display=False) as counter:
        found = run()
    return float(counter.get_total_flops()), found


def _backward_of(loss: Tensor) -> float:
    return _counted(loss.backward)[0] if loss.requires_grad else 0.0


def _cost(
    name: str, part: nn.Module, forward: float, backward: float = 0.0, contrast: float = 0.0, contrast_backward: float = 0.0, *,
    cacheable: bool = False,
) -> PartCost:  # fmt: skip
    parameters = sum(parameter.numel() for parameter in part.parameters())
    largest = max((parameter.numel() for parameter in part.parameters() if parameter.requires_grad), default=0)
    return PartCost(name, parameters, _trained(part), forward, backward, contrast, contrast_backward, cacheable, largest)


def _trained(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)


def cache_bytes(model: SlotAutoencoder, image_size: tuple[int, int], *, bytes_per_value: float = 2.0) -> Mapping[str, float]:
    """Bytes of one image in one orientation, by part, that `ocl cache` stores; only for what is never trained."""
    image = torch.empty(1, 3, *image_size, device="meta")
    found: dict[str, float] = {}
    if not _trained(model.encoder):
        found["features"] = math.prod(model.encoder(image).tokens.shape) * bytes_per_value
    if isinstance(model.decoder, LatentDiffusion):
        moments = model.decoder.autoencoder.moments(image)
        found["latents"] = (1 if moments.std is None else 2) * moments.mean.numel() * max(bytes_per_value, 2.0)
    return found
