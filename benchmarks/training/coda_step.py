"""A CODA training step (forward and backward), ours against the published formulation, one switch after another.

    python benchmarks/training/coda_step.py [--quick] [--device cuda] [--sizes tiny mid full] [--batches 8 32] [--out FILE]

Same weights, same random draws. Loss and every gradient of each way must agree with the published way (see diffusion.py) before
any speed is reported. Ways take turns in one process; ratios are those of medians, of processor time on a CPU. Images are in
memory; what a cache holds is too.
Each row keeps the switches of the rows above it:

    published         two passes toggling requires_grad, context concatenated per image with a mask, encoder and VAE at every step
    registers once    our cross-attention: registers projected once per batch; absorbed Slot Attention
    fused attention   the compiled operator in place of torch's attention on concatenated keys, on a CPU in self-attention too
    merged pass       both errors in one pass of twice the batch
    shared trunk      what lies before the first cross-attention once for both
    caches            features and latent moments come with the batch
    channels-last     memory layout of the U-Net

and each of these comes with all of the above, but not with one another:

    separate passes   but neither merged pass nor shared trunk: half the activations at a time
    checkpointing     activations of every block again in the backward pass, for memory
    selective         the same but for products, convolutions and attention
    compile           torch.compile of the U-Net
    compile, graphs   the same as CUDA graphs, on CUDA only
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.training.diffusion import (  # noqa: E402
    RATE,
    SIZES,
    WEIGHT,
    Published,
    Size,
    StepDraws,
    keep,
    options,
    ours,
    read,
    refuse,
    sizes_for,
    write,
)
from benchmarks.training.memory import now, peak_mib  # noqa: E402
from ocl.decoders.diffusion.checkpointing import Checkpointing  # noqa: E402
from ocl.decoders.diffusion.decoder import Draws  # noqa: E402
from ocl.models import SlotAutoencoder  # noqa: E402
from ocl.ops import backend  # noqa: E402
from ocl.slots.mismatch import swapped  # noqa: E402
from ocl.train.compiling import Compile, compiled  # noqa: E402
from ocl.types import Batch, Mismatch, Moments  # noqa: E402

TOLERANCE = 1e-3  # of a gradient's norm; measured differences are near 1e-5
SWITCHES = ("registers once", "fused attention", "merged pass", "shared trunk", "caches", "channels-last")
SEPARATE = "separate passes"
CHECKPOINTING: dict[str, Checkpointing] = {"checkpointing": True, "selective": "selective"}
COMPILE: dict[str, Compile] = {"compile": "denoiser", "compile, graphs": "denoiser-graphs"}


def main() -> int:
    parser = options(__doc__, quick="tiny, batch 8, without torch.compile")
    parser.add_argument("--rounds", type=int, help="default 7; 3 for mid on a CPU")
    parser.add_argument("--no_compile", action="store_true")
    known = read(parser)
    rows = []
    for name in sizes_for(known.sizes, device=known.device, quick=known.quick):
        if name == "full" and known.device == "cpu":
            sys.exit("the full size (Stable Diffusion 1.5 at 512 pixels) needs --device cuda")
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), SIZES[name])
            for batch in known.batches or ([8] if known.quick else [8, 32]):
                rounds = known.rounds or (3 if known.quick or (name == "mid" and known.device == "cpu") else 7)
                compile_too = not (known.quick or known.no_compile)
                rows += measure(name, Path(folder), batch, known.device, known.precision, rounds=rounds, compile_too=compile_too)
    keep("coda_step", known, rows)
    return 0


def measure(
    name: str, folder: Path, batch: int, device: str, precision: str, *, rounds: int, compile_too: bool
) -> list[dict[str, Any]]:
    size = SIZES[name]
    ways = build(folder, size, batch, device, compile_too=compile_too)
    check(ways)
    autocast = torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, float | None] = {}
    with autocast:
        for round_number in range(rounds + 1):  # the first is not counted
            for way, (step, zero, _) in ways.items():
                zero()
                if round_number == 0:
                    peaks[way] = peak_mib(step, device)
                    continue
                before = now(device)
                step()
                if device != "cpu":
                    torch.cuda.synchronize()
                seconds[way].append(now(device) - before)
    speed = {way: batch / statistics.median(values) for way, values in seconds.items()}
    rows = []
    for way in ways:
        row = {"size": name, "batch": batch, "way": way, "samples_per_s": speed[way], "ratio": speed[way] / speed["published"],
               "peak_mib": peaks[way]}  # fmt: skip
        print("{size} B={batch} {way:>16}: {samples_per_s:8.2f} samples/s, ratio {ratio:.2f}, peak {peak_mib:.0f} MiB".format(
            **row | {"peak_mib": row["peak_mib"] or 0}), flush=True)  # fmt: skip
        rows.append(row)
    return rows


Way = tuple[Callable[[], Tensor], Callable[[], None], Callable[[], dict[str, Tensor]]]
"""One step that ends with gradients and returns the loss; what clears them; what reads them."""


def build(folder: Path, size: Size, batch: int, device: str, *, compile_too: bool) -> dict[str, Way]:
    model = ours(folder, size, device)
    image = torch.rand(batch, 3, size.image, size.image, generator=torch.Generator().manual_seed(3)).to(device)
    decoder: Any = model.decoder
    draws = StepDraws.make(size, batch, decoder.autoencoder.size((size.image, size.image))[0], device)
    published = Published(model, folder, size, device)

    def published_step() -> Tensor:
        loss = published.loss(image, draws)
        loss.backward()
        return loss.detach()

    with torch.no_grad():
        moments = decoder.autoencoder.moments(image)
        computed = Batch(image, features=model.encoder(image), moments=Moments(moments.mean, moments.std))
    ways: dict[str, Way] = {"published": (published_step, published.zero, published.gradients)}
    for position, switch in enumerate(SWITCHES):
        if switch == "channels-last":
            model = _in_channels_last(ours(folder, size, device))
        on = SWITCHES[: position + 1]
        batch_in = computed if "caches" in on else Batch(image)
        ways[switch] = (_step(model, batch_in, draws, on), _zero(model), _gradients(model))
    for switch in (SEPARATE, *CHECKPOINTING, *(COMPILE if compile_too else ())):
        if switch == "compile, graphs" and device == "cpu":
            continue
        model = _in_channels_last(ours(folder, size, device, checkpointing=CHECKPOINTING.get(switch, False)))
        if switch in COMPILE:
            compiled(model, COMPILE[switch])
        on = tuple(each for each in SWITCHES if switch != SEPARATE or each not in ("merged pass", "shared trunk"))
        ways[switch] = (_step(model, computed, draws, on), _zero(model), _gradients(model))
    return ways


def _in_channels_last(model: SlotAutoencoder) -> SlotAutoencoder:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _step(model: SlotAutoencoder, batch: Batch, draws: StepDraws, on: tuple[str, ...]) -> Callable[[], Tensor]:
    decoder: Any = model.decoder
    given = Draws(draws.level, draws.posterior, draws.noise, draws.kept)

    def step() -> Tensor:
        decoder.denoiser.passes = "merged" if "merged pass" in on else "separate"
        decoder.denoiser.share_trunk = "shared trunk" in on
        with backend("auto" if "fused attention" in on else "sdpa"):
            features = model.encoder(batch.image) if batch.features is None else batch.features
            slots = model.slot_module(features, model.init(len(batch), noise=draws.slots))
            contrast = swapped(slots, Mismatch(rate=RATE), draw=draws.swap)
            decoding = decoder(slots, batch, features, contrast=contrast, draws=given)
            loss = decoding.error().mean() - WEIGHT * decoding.contrast_error().mean()
            loss.backward()
        return loss.detach()

    return step


def _zero(model: SlotAutoencoder) -> Callable[[], None]:
    return lambda: model.zero_grad(set_to_none=True)


def _gradients(model: SlotAutoencoder) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def check(ways: dict[str, Way]) -> None:
    """In float32: the loss and every gradient of each way are those of the published one."""
    found = {}
    for way, (step, zero, gradients) in ways.items():
        zero()
        loss = step()
        found[way] = (loss, {name: value.clone() for name, value in gradients().items()})
        zero()
    loss, expected = found["published"]
    largest = max(float(value.norm()) for value in expected.values())
    for way, (other, values) in found.items():
        if abs(float(other - loss)) > TOLERANCE * abs(float(loss)) or values.keys() != expected.keys():
            refuse(f"the loss or the set of gradients of {way}", abs(float((other - loss) / loss)))
        for name, value in expected.items():
            error = float((values[name] - value).norm())
            if error > TOLERANCE * float(value.norm()) + 1e-5 * largest:
                refuse(f"{way}: the gradient of {name}", error / float(value.norm()))


if __name__ == "__main__":
    sys.exit(main())
