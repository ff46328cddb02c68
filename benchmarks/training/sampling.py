"""Images drawn per second from slots (DDIM, guidance), ours against the published formulation, one switch after another.

    python benchmarks/training/sampling.py [--quick] [--device cuda] [--sizes tiny mid full] [--batches 1 8] [--steps 50]

The published way concatenates slots and registers for every image and lets the U-Net's own layers project them at every step
(see diffusion.py). Latents must agree first; the autoencoder's decoding is part of every way. Each row keeps the switches of the
rows above it:

    projected once    keys and values of slots and registers serve all steps (`sample`)
    fused attention   the compiled operator in place of torch's attention on concatenated keys
    shared trunk      what lies before the first cross-attention once for both predictions of guidance
    channels-last     memory layout of U-Net and autoencoder
    compile           torch.compile of the U-Net
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

from benchmarks.training.diffusion import SIZES, Published, Size, keep, options, ours, read, refuse, sizes_for, write  # noqa: E402
from benchmarks.training.memory import now, peak_mib  # noqa: E402
from ocl.generate.sample import sample_latents  # noqa: E402
from ocl.ops import backend  # noqa: E402
from ocl.train.compiling import compiled  # noqa: E402
from ocl.types import Slots  # noqa: E402

TOLERANCE = 1e-3
SWITCHES = ("projected once", "fused attention", "shared trunk", "channels-last", "compile")


def main() -> int:
    parser = options(__doc__, quick="tiny, batch 2, 10 steps, without torch.compile")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_compile", action="store_true")
    known = read(parser)
    steps = known.steps or (10 if known.quick else 50)
    rows = []
    for name in sizes_for(known.sizes, device=known.device, quick=known.quick):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), SIZES[name])
            for batch in known.batches or ([2] if known.quick else [1, 8]):
                rows += measure(name, Path(folder), batch, known.device, known.precision, steps=steps, rounds=known.rounds,
                                compile_too=not (known.quick or known.no_compile))  # fmt: skip
    keep("sampling", known, rows)
    return 0


@torch.no_grad()
def measure(
    name: str, folder: Path, batch: int, device: str, precision: str, *, steps: int, rounds: int, compile_too: bool
) -> list[dict[str, Any]]:
    ways = build(folder, SIZES[name], batch, device, compile_too=compile_too)
    check({way: draw(3) for way, (draw, _) in ways.items()})
    autocast = torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, float | None] = {}
    with autocast:
        for way, (draw, decode) in ways.items():
            peaks[way] = peak_mib(lambda draw=draw, decode=decode: decode(draw(2)), device)  # type: ignore[misc]
        for _ in range(rounds):
            for way, (draw, decode) in ways.items():
                before = now(device)
                decode(draw(steps))
                if device != "cpu":
                    torch.cuda.synchronize()
                seconds[way].append(now(device) - before)
    speed = {way: batch / statistics.median(values) for way, values in seconds.items()}
    rows = []
    for way in ways:
        row = {"size": name, "batch": batch, "steps": steps, "way": way, "images_per_s": speed[way],
               "ratio": speed[way] / speed["published"], "peak_mib": peaks[way]}  # fmt: skip
        print("{size} B={batch} {way:>16}: {images_per_s:8.3f} images/s, ratio {ratio:.2f}".format(**row), flush=True)
        rows.append(row)
    return rows


Way = tuple[Callable[[int], Tensor], Callable[[Tensor], Tensor]]
"""(number of steps -> latents, latents -> images)."""


def build(folder: Path, size: Size, batch: int, device: str, *, compile_too: bool) -> dict[str, Way]:
    model = ours(folder, size, device).eval()
    decoder: Any = model.decoder
    published = Published(model, folder, size, device)
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(batch, size.num_slots, decoder.slot_dim, generator=generator).to(device)
    side = decoder.autoencoder.size((size.image, size.image))
    attn = torch.full((batch, size.num_slots, 1), 1 / size.num_slots, device=device)
    slots = Slots(vectors, attn, (1, 1))

    def draws() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(number) for number in range(batch)]

    noise = torch.stack([torch.randn(4, *side, generator=each) for each in draws()]).to(device)
    ways: dict[str, Way] = {
        "published": (lambda steps: published.guided(vectors, noise, steps=steps, guidance=2.0), decoder.autoencoder.decode)
    }
    for position, switch in enumerate(SWITCHES):
        if switch == "compile" and not compile_too:
            continue
        if switch in ("channels-last", "compile"):  # copies: both change the model itself
            model = ours(folder, size, device).eval()
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if switch == "compile":
            compiled(model, "denoiser")
        ways[switch] = _way(model.decoder, slots, side, draws, SWITCHES[: position + 1])
    return ways


def _way(decoder: Any, slots: Slots, side: tuple[int, int], draws: Callable[[], list[torch.Generator]], on: tuple[str, ...]) -> Way:
    def draw(steps: int) -> Tensor:
        decoder.denoiser.share_trunk = "shared trunk" in on
        with backend("auto" if "fused attention" in on else "sdpa"):
            return sample_latents(decoder, slots, side, steps=steps, guidance=2.0, sampler="ddim", generator=draws())

    return draw, decoder.autoencoder.decode


def check(latents: dict[str, Tensor]) -> None:
    expected = latents["published"]
    for way, found in latents.items():
        error = float((found - expected).norm() / expected.norm())
        if error > TOLERANCE:
            refuse(f"{way}: the drawn latent", error)


if __name__ == "__main__":
    sys.exit(main())
