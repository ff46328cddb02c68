"""`ocl plan CONFIG --gpus N --memory G`: what a run will cost and what fits, before anything is loaded or bought."""

from __future__ import annotations

import copy
import math
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from ocl.cli import experiment as experiments
from ocl.cli.experiment import Experiment
from ocl.cli.options import command
from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import AdaptedUNet, LatentTransformer, LatentUNet
from ocl.decoders.diffusion.checkpointing import enable_checkpointing
from ocl.errors import ConfigError, OCLError
from ocl.interfaces import Loss
from ocl.losses import ContrastiveAlignment
from ocl.models import SlotAutoencoder
from ocl.train import Training, joint, plan
from ocl.train.cost import Memory, PartCost, cache_bytes, memory, part_costs
from ocl.train.deepspeed_config import check_batch
from ocl.train.loop import check_losses
from ocl.train.world import World

GIB = 2**30
EPILOG = """
Operations are counted by torch on the meta device; bytes are those of the storages that live during a pass of fake tensors, times
1.25 for workspaces and buffers. Nothing is measured: times assume --tflops and --bandwidth. Not covered: what a data loader
costs, CPU offload, ZeRO++, and pipelines whose shape is not known here (see ocl/decoders/diffusion/known.py) without a folder.
"""


def main(argv: Sequence[str]) -> int:
    options = command("plan", "Say what a run costs and what fits. Further options are those of the config.")
    options.epilog = EPILOG
    options.add_argument("--gpus", type=int, default=1, help="how many share the run")
    options.add_argument("--memory", type=float, default=80.0, help="GiB of one GPU")
    options.add_argument("--batch", type=int, help="images per GPU; default training.batch_size shared among the GPUs")
    options.add_argument("--image_size", type=int, help="side of an image; default that of the data")
    options.add_argument("--images", type=int, help="how many a cache would hold; default those of the data, where it is here")
    options.add_argument("--tflops", type=float, default=400.0, help="10^12 operations per second that a GPU reaches in training")
    options.add_argument("--bandwidth", type=float, default=50.0, help="10^9 bytes per second of one GPU between machines")
    options.add_argument("--denoiser", help="count another denoiser, with joint attention, on paper: sd3-medium")
    words = ["--config", *argv] if argv and not argv[0].startswith("-") else list(argv)
    known, rest = options.parse_known_args(words)
    experiment = experiments.read(rest, prog="ocl plan", packages=known.packages)
    _check(known)
    side = image_size(experiment) if known.image_size is None else known.image_size
    multiple = 2 if known.gpus > 1 and _pairs(experiment.losses()) else 1
    batch = known.batch or -(-experiment.training.batch_size // (known.gpus * multiple)) * multiple
    refused = refusal(experiment, known.gpus, batch=known.batch)
    cached = experiment.training.cache is not None
    model = experiment.model(device="meta")

    parts, without, checkpointed = costs(experiment, model, side, known.denoiser, cached=cached)
    fits = plan.fits(parts, without, checkpointed, gpus=known.gpus, memory=known.memory * GIB, batch=batch, cached=cached,
                     multiple=multiple)  # fmt: skip
    best = plan.recommended(fits, batch=batch)
    again = repeated(experiment, model, side, parts) if best is not None and best.checkpointing else 0.0
    console = Console()
    console = console if console.is_terminal else Console(width=132)
    console.print(_parts_table(parts, side))
    console.print(_fit_table(fits, without, checkpointed, batch=batch, gpus=known.gpus, gib=known.memory))
    console.print(_traffic_table(parts, best, batch=batch, gpus=known.gpus, bandwidth=known.bandwidth * 1e9,
                                 rate=known.tflops * 1e12, cached=cached, repeated=again))  # fmt: skip
    if refused is not None:
        console.print(f"Training refuses this batch: {refused} Counted here: {batch} images per GPU, training.batch_size="
                      f"{batch * known.gpus}.", highlight=False, markup=False, soft_wrap=True)  # fmt: skip
    for line in [*_advice(best, experiment.training, batch=batch, gpus=known.gpus, gib=known.memory),
                 *_cache_lines(experiment, model, parts, side, known.images, cached=cached)]:  # fmt: skip
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def costs(
    experiment: Experiment, model: SlotAutoencoder, side: int, denoiser: str | None, *, cached: bool
) -> tuple[list[PartCost], Memory, Memory | None]:
    """Parts, and bytes of a pass without and with activation checkpointing (None where the decoder has none)."""
    contrast = _contrasts(experiment)
    precision, size = experiment.training.precision, (side, side)
    parts = part_costs(model, size, contrast=contrast)
    if denoiser is not None:
        other = joint.joint_denoiser(denoiser)
        num_tokens = model.init.num_slots + 77
        parts = [*parts[:-1], joint.joint_cost(other, size, num_tokens=num_tokens, contrast=contrast)]
        return parts, joint.joint_memory(other, size, num_tokens=num_tokens, contrast=contrast, precision=precision), None
    without = memory(model, size, contrast=contrast, precision=precision, cached=cached)
    saving = _checkpointed(model)
    if saving is None:
        return parts, without, None
    return parts, without, memory(saving, size, contrast=contrast, precision=precision, cached=cached)


def repeated(experiment: Experiment, model: SlotAutoencoder, side: int, parts: Sequence[PartCost]) -> float:
    """Operations of one image that are done again with activation checkpointing; `parts` are those without it."""
    saving = _checkpointed(model)
    if saving is None:
        return 0.0
    counted = part_costs(saving, (side, side), contrast=_contrasts(experiment))
    return sum(part.total for part in counted) - sum(part.total for part in parts)


def refusal(experiment: Experiment, gpus: int, *, batch: int | None) -> str | None:
    """Why training would not begin on so many processes, or None. batch: images per process; None for those of the config."""
    training = experiment.training if batch is None else replace(experiment.training, batch_size=batch * gpus)
    try:
        check_batch(training, gpus)
        check_losses(experiment.losses(), training, World(size=gpus))
    except ConfigError as error:
        return str(error)
    return None


def _check(known: Namespace) -> None:
    """Raises ConfigError at an option that means nothing."""
    for name in ("gpus", "batch", "image_size", "images"):
        value = getattr(known, name)
        if value is not None and value < 1:
            raise ConfigError(f"ocl plan: --{name} must be 1 or more, got {value}; correct it.")
    for name in ("memory", "tflops", "bandwidth"):
        value = getattr(known, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"ocl plan: --{name} must be a positive number, got {value:g}; correct it.")


def _contrasts(experiment: Experiment) -> bool:
    return any(isinstance(loss, ContrastiveAlignment) for loss in experiment.losses())


def _pairs(losses: Iterable[Loss]) -> bool:
    return any(loss.mismatch(0) is not None for loss in losses)


def _checkpointed(model: SlotAutoencoder) -> SlotAutoencoder | None:
    """A copy whose denoiser computes activations again in the backward pass; None where the decoder cannot."""
    saving = copy.deepcopy(model)
    built = saving.decoder.denoiser if isinstance(saving.decoder, LatentDiffusion) else None
    if not isinstance(built, (LatentUNet, LatentTransformer, AdaptedUNet)):
        return None
    enable_checkpointing(built.backbone.module, built.state)
    return saving


def _parts_table(parts: Sequence[PartCost], side: int) -> Table:
    title = f"One image of {side} px in one training step"
    table = Table("part", "parameters M", "trained M", "forward", "backward", "slots of others", "their backward", "GFLOP",
                  title=title, title_justify="left")  # fmt: skip
    for part in parts:
        numbers = (part.forward, part.backward, part.contrast, part.contrast_backward, part.total)
        table.add_row(part.name + (" (cacheable)" if part.cacheable else ""), f"{part.parameters / 1e6:.2f}",
                      f"{part.trained / 1e6:.2f}", *(f"{value / 1e9:.0f}" for value in numbers))  # fmt: skip
    total, cached = sum(part.total for part in parts), sum(part.total for part in parts if not part.cacheable)
    counts = (sum(part.parameters for part in parts), sum(part.trained for part in parts))
    table.add_row("total", *(f"{count / 1e6:.2f}" for count in counts), "", "", "", "", f"{total / 1e9:.0f}")
    table.add_row("total from a cache", "", "", "", "", "", f"{total / cached:.2f} x cheaper", f"{cached / 1e9:.0f}")
    return table


def _fit_table(
    fits: Iterable[plan.Fit], without: Memory, checkpointed: Memory | None, *, batch: int, gpus: int, gib: float
) -> Table:
    table = Table("ZeRO stage", "checkpointing", "weights", "gradients", "optimizer", "buffers", f"activations of {batch}",
                  f"needed (x {plan.MARGIN})", "largest batch",
                  title=f"GiB of each of {gpus} GPUs with {gib:g} GiB", title_justify="left")  # fmt: skip
    for fit in fits:
        held = checkpointed if fit.checkpointing and checkpointed else without
        sizes = (*vars(fit.states).values(), held.at(batch), fit.needed)
        table.add_row(str(fit.stage), "yes" if fit.checkpointing else "no", *(f"{size / GIB:.2f}" for size in sizes),
                      str(fit.largest_batch))  # fmt: skip
    return table


def _traffic_table(
    parts: Sequence[PartCost], best: plan.Fit | None, *, batch: int, gpus: int, bandwidth: float, rate: float, cached: bool,
    repeated: float,
) -> Table:  # fmt: skip
    table = Table("GPUs", "images a step", "stage", "GiB sent per GPU", "ms to send", "ms to compute", "efficiency", "images/s",
                  title=f"A step of {batch} images per GPU at {bandwidth / 1e9:g} GB/s and {rate / 1e12:g} TFLOP/s; efficiency if "
                        "nothing, or all, is sent while computing", title_justify="left")  # fmt: skip
    stages = sorted({best.stage if best else 0, 3})
    for count in sorted({gpus, 8, 64, 512, 4096}):
        for stage in stages if count > 1 else [0]:
            found = plan.traffic(parts, gpus=count, stage=stage, batch=batch, bandwidth=bandwidth, rate=rate, cached=cached,
                                 repeated=repeated)  # fmt: skip
            table.add_row(
                str(count), str(count * batch), str(stage), f"{found.bytes / GIB:.3f}", f"{found.seconds * 1e3:.1f}",
                f"{found.compute * 1e3:.0f}", f"{found.exposed:.1%} to {found.hidden:.1%}",
                f"{count * batch / (found.compute + found.seconds):.0f}",
            )  # fmt: skip
    return table


def _advice(best: plan.Fit | None, training: Training, *, batch: int, gpus: int, gib: float) -> list[str]:
    if best is None:
        return [f"Nothing fits into {gpus} x {gib:g} GiB; use smaller images, or larger GPUs."]
    file = f"configs/deepspeed/zero{best.stage}.json"
    setting = "the local engine" if gpus == 1 else f"ZeRO stage {best.stage} (--engine DeepSpeed --engine.config {file})"
    if best.checkpointing:
        setting += " with activation checkpointing (--model.decoder.denoiser.checkpointing true)"
    if best.largest_batch >= batch:
        return [f"Recommended: {setting}; {batch} images per GPU fit, up to {best.largest_batch}."]
    passes = -(-batch // best.largest_batch)
    return [f"{batch} images per GPU do not fit. Recommended: {setting}, {best.largest_batch} images per GPU: training.batch_size "
            f"{best.largest_batch * gpus} and training.accumulate {passes * training.accumulate}."]  # fmt: skip


def _cache_lines(
    experiment: Experiment, model: SlotAutoencoder, parts: Sequence[PartCost], side: int, images: int | None, *, cached: bool
) -> list[str]:
    sizes = cache_bytes(model, (side, side))
    if not sizes or cached:
        return []
    each = sum(sizes.values()) * (2 if experiment.training.flip > 0 else 1)
    listed = ", ".join(f"{name} {size / 2**20:.3g} MiB" for name, size in sizes.items())
    if images is None:
        try:
            images = len(experiment.data())
        except (OCLError, OSError):
            return [f"Cache: {listed} an image in fp16; pass --images N for its size, as the data is not here."]
    saved = sum(part.total for part in parts) / sum(part.total for part in parts if not part.cacheable)
    total = f"{images * each / GIB:.3g} GiB for {images} images"
    return [f"Cache: {listed} an image in fp16, {total}; a step gets {saved:.2f} x cheaper."]


def image_size(experiment: Experiment) -> int:
    """Side of the training images in pixels. Raises ConfigError where the data leaves it open."""
    data = experiment.config.clone()["data"]
    while True:
        arguments = data.get("init_args", {})
        if arguments.get("image_size"):
            return int(arguments["image_size"])
        if "dataset" not in arguments:
            raise ConfigError("ocl plan needs the size of an image, which the data leaves open; pass --image_size N.")
        data = arguments["dataset"]
