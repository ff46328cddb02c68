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


XL = ("--model.weights", "stabilityai/stable-diffusion-xl-base-1.0")


def rows() -> list[tuple[Path, tuple[str, ...], str | None]]:
    """(config, further words, denoiser on paper): every experiment that is shipped, and CODA with two larger decoders."""
    shipped = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent.name != "pretrain"]  # recipes, not experiments
    voc = CONFIGS / "coda" / "voc.yaml"
    return [*((path, (), None) for path in shipped), (voc, XL, None), (voc, (), "sd3-medium")]


def label(path: Path, words: tuple[str, ...], denoiser: str | None) -> str:
    return " ".join([f"{path.parent.name}/{path.stem}", *words, *(["--denoiser", denoiser] if denoiser else [])])


def row(path: Path, words: tuple[str, ...] = (), denoiser: str | None = None) -> str:
    experiment = experiments.read(["--config", str(path), *words], prog="plan_table")
    model, side = experiment.model(device="meta"), image_size(experiment)
    parts, without, checkpointed = costs(experiment, model, side, denoiser, cached=False)
    options = fits(parts, without, checkpointed, gpus=1, memory=80 * GIB, batch=1, cached=False)
    total, cached = sum(part.total for part in parts), sum(part.total for part in parts if not part.cacheable)
    stored = sum(cache_bytes(model, (side, side)).values())
    cells = [
        label(path, words, denoiser), str(side), f"{sum(part.parameters for part in parts) / 1e6:.1f}",
        f"{sum(part.trained for part in parts) / 1e6:.2f}", f"{total / 1e9:.4g}", f"{cached / 1e9:.4g}",
        f"{options[0].states.total / GIB:.2f}", f"{without.per_image / GIB:.3g}", str(options[0].largest_batch),
        str(options[-1].largest_batch) if checkpointed else "", f"{stored / 2**20:.3g}" if stored else "",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS), flush=True)
    for path, words, denoiser in [(Path(name), (), None) for name in sys.argv[1:]] or rows():
        print(row(path, words, denoiser), flush=True)


if __name__ == "__main__":
    main()
