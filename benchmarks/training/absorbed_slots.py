"""Training samples/s of absorbed against plain Slot Attention: forward and backward of the whole module, in one process.

    python benchmarks/training/absorbed_slots.py [--quick] [--out FILE]

The two forms take turns; the ratio is that of the medians. Both are first checked to agree in outputs and gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from ocl.slots import SlotAttention
from ocl.types import Features

SHAPES = [  # batch, tokens N, feature width D, slot width, slots K
    (32, 1024, 768, 768, 7),
    (8, 256, 768, 768, 7),
    (8, 1024, 384, 384, 11),
    (8, 4096, 64, 64, 7),
]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="the first shape only, few repetitions")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path)
    known = options.parse_args()
    torch.set_num_threads(known.threads)
    rows = [measure(shape, known.device, repeats=5 if known.quick else 15) for shape in (SHAPES[:1] if known.quick else SHAPES)]
    for row in rows:
        sizes = "B={batch} N={tokens} D={width} K={slots}".format(**row)
        print(sizes + ": plain {plain:.2f}, absorbed {absorbed:.2f} samples/s, ratio {ratio:.2f}".format(**row))
    if known.out:
        known.out.write_text(json.dumps({"benchmark": "absorbed_slots", "threads": known.threads, "rows": rows}, indent=1) + "\n")
    return 0


def measure(shape: tuple[int, int, int, int, int], device: str, *, repeats: int) -> dict[str, float]:
    batch, tokens, width, slot_dim, num_slots = shape
    torch.manual_seed(0)
    plain = SlotAttention(width, slot_dim, form="plain").to(device)
    absorbed = SlotAttention(width, slot_dim, form="absorbed").to(device)
    absorbed.load_state_dict(plain.state_dict())
    x = torch.randn(batch, tokens, width, device=device, requires_grad=True)
    init = torch.randn(batch, num_slots, slot_dim, device=device, requires_grad=True)
    modules = {"plain": plain, "absorbed": absorbed}
    _check(*(_pass(module, x, init) for module in modules.values()))
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(repeats):
        for name, module in modules.items():
            before = time.perf_counter()
            _pass(module, x, init)
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - before)
    speed = {name: batch / statistics.median(values) for name, values in seconds.items()}
    sizes = {"batch": batch, "tokens": tokens, "width": width, "slots": num_slots}
    return {**sizes, **speed, "ratio": speed["absorbed"] / speed["plain"]}


def _pass(module: SlotAttention, x: Tensor, init: Tensor) -> list[Tensor]:
    side = (x.shape[1], 1)
    vectors = module(Features(x, side), init).vectors
    return [vectors, *torch.autograd.grad(vectors.square().mean(), [x, init, *module.parameters()])]


def _check(plain: list[Tensor], absorbed: list[Tensor]) -> None:
    """Every output and gradient within 1e-4 of its own norm, or of rounding beside the others where it is zero in theory."""
    rounding = 1e-6 * max(float(gradient.detach().norm()) for gradient in plain[1:])
    for left, right in zip(plain, absorbed, strict=True):
        error, norm = float((left - right).detach().norm()), float(left.detach().norm())
        if error > 1e-4 * norm + rounding:
            raise SystemExit(f"the two forms disagree by {error:.1e} of {norm:.1e}; no speed is reported for a wrong result")


if __name__ == "__main__":
    sys.exit(main())
