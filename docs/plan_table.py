"""The table of docs/plan.md, for every shipped config or for some: python docs/plan_table.py [CONFIG ...]"""

from __future__ import annotations

import sys
from pathlib import Path

from ocl.cli import experiment as experiments
from ocl.cli.plan import costs, image_size
from ocl.train.cost import cache_bytes
from ocl.train.plan import fits

GIB = 2**30
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
COLUMNS = ("config", "px", "parameters M", "trained M", "GFLOP/image", "from a cache", "states GiB", "GiB/image",
           "largest batch in 80 GiB", "with checkpointing", "cache MiB/image")  # fmt: skip


def row(path: Path, *more: str) -> list[str]:
    experiment = experiments.read(["--config", str(path), *more], prog="plan_table")
    model, side = experiment.model(device="meta"), image_size(experiment)
    parts, without, checkpointed = costs(experiment, model, side, None, cached=False)
    options = fits(parts, without, checkpointed, gpus=1, memory=80 * GIB, batch=1, cached=False)
    total, cached = sum(part.total for part in parts), sum(part.total for part in parts if not part.cacheable)
    stored = sum(cache_bytes(model, (side, side)).values())
    return [
        " ".join([f"{path.parent.name}/{path.stem}", *more]), str(side), f"{sum(part.parameters for part in parts) / 1e6:.1f}",
        f"{sum(part.trained for part in parts) / 1e6:.2f}", f"{total / 1e9:.4g}", f"{cached / 1e9:.4g}",
        f"{options[0].states.total / GIB:.2f}", f"{without.per_image / GIB:.3g}", str(options[0].largest_batch),
        str(options[-1].largest_batch) if checkpointed else "", f"{stored / 2**20:.3g}" if stored else "",
    ]  # fmt: skip


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted(CONFIGS.glob("*/*.yaml"))
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS), flush=True)
    for path in paths:
        print("| " + " | ".join(row(path)) + " |", flush=True)
    if not sys.argv[1:]:
        xl = ["--model.weights", "stabilityai/stable-diffusion-xl-base-1.0"]
        print("| " + " | ".join(row(CONFIGS / "coda" / "voc.yaml", *xl)) + " |")


if __name__ == "__main__":
    main()
