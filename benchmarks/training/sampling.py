"""Images drawn per second from slots (DDIM, guidance): keys and values of slots and registers projected once, or at every step.

    python benchmarks/training/sampling.py [--quick] [--device cuda] [--sizes tiny mid full] [--batches 1 8] [--steps 50]

The published way concatenates slots and registers for every image and lets the U-Net's own layers project them at every step
(see diffusion.py); ours projects both once (`sample`). Latents must agree first; the autoencoder's decoding is part of both.
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
from ocl.types import Slots  # noqa: E402

TOLERANCE = 1e-3


def main() -> int:
    parser = options(__doc__, quick="tiny, batch 2, 10 steps")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    known = read(parser)
    steps = known.steps or (10 if known.quick else 50)
    rows = []
    for name in sizes_for(known.sizes, device=known.device, quick=known.quick):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), SIZES[name])
            for batch in known.batches or ([2] if known.quick else [1, 8]):
                rows += measure(name, Path(folder), batch, known.device, known.precision, steps=steps, rounds=known.rounds)
    keep("sampling", known, rows)
    return 0


@torch.no_grad()
def measure(name: str, folder: Path, batch: int, device: str, precision: str, *, steps: int, rounds: int) -> list[dict[str, Any]]:
    ways = build(folder, SIZES[name], batch, device)
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


def build(folder: Path, size: Size, batch: int, device: str) -> dict[str, Way]:
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

    def with_backend(name: Any) -> Callable[[int], Tensor]:
        def draw(steps: int) -> Tensor:
            with backend(name):
                return sample_latents(decoder, slots, side, steps=steps, guidance=2.0, sampler="ddim", generator=draws())

        return draw

    decode = decoder.autoencoder.decode
    return {
        "published": (lambda steps: published.guided(vectors, noise, steps=steps, guidance=2.0), decode),
        "projected once": (with_backend("sdpa"), decode),
        "fused attention": (with_backend("auto"), decode),
    }


def check(latents: dict[str, Tensor]) -> None:
    expected = latents["published"]
    for way, found in latents.items():
        error = float((found - expected).norm() / expected.norm())
        if error > TOLERANCE:
            refuse(f"{way}: the drawn latent", error)


if __name__ == "__main__":
    sys.exit(main())
