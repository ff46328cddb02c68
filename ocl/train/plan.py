"""What fits and how fast, on paper: memory under ZeRO stages (Rajbhandari et al. 2020), communication, time of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ocl.train.cost import Memory, PartCost
from ocl.train.deepspeed_config import bucket_size

STAGES = (0, 1, 2, 3)
MARGIN = 1.25  # workspaces, allocator and communication buffers; measured peaks on a CPU were 1.15 to 1.2 times the counted bytes
WIDTH = 4  # bytes of a weight, its gradient and each of its moments: float32 under every engine and precision


@dataclass(frozen=True)
class States:
    """Bytes of a GPU that do not depend on the batch.

    weights: all of them, frozen ones too. optimizer: Adam's two moments, and the copy of its share of the trained weights that
    DeepSpeed updates (stages 1 to 3). buffers: two in which gradients are sent; at stage 3 one, and weights that were fetched.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.buffers


@dataclass(frozen=True)
class Fit:
    """One setting of one GPU: what its states take, and the largest batch beside them (0: not even one image)."""

    stage: int
    checkpointing: bool
    states: States
    largest_batch: int
    needed: float  # bytes at the wished batch, margin included


@dataclass(frozen=True)
class Traffic:
    """What one GPU sends and receives for one update among `gpus`, and what that means for its time.

    seconds: at the given bandwidth, beside `compute` seconds of the step. hidden: nothing waits if both overlap fully;
    exposed: share of the time that is left for computing if nothing overlaps.
    """

    gpus: int
    stage: int
    bytes: float
    seconds: float
    compute: float

    @property
    def exposed(self) -> float:
        return self.compute / (self.compute + self.seconds)

    @property
    def hidden(self) -> float:
        return self.compute / max(self.compute, self.seconds)


def states(parameters: int, trained: int, *, stage: int, gpus: int, largest: int = 0) -> States:
    """Of one of `gpus` GPUs. Stage 1 shares the optimizer among them, 2 the gradients too, 3 the trained weights too.

    Frozen weights are whole in every process at every stage: DeepSpeed is given the trained modules alone. largest: numbers in
    the largest trained tensor. Buffers are those of the shipped files, whose `overlap_comm` takes two at stages 1 and 2.
    """
    weights, gradients, share = (WIDTH * trained / (gpus if stage >= least else 1) for least in (3, 2, 1))
    optimizer, buffers = (3 * share, 2 * WIDTH * bucket_size(trained, largest)) if stage else (2 * share, 0)
    return States(WIDTH * (parameters - trained) + weights, gradients, optimizer, buffers)


def fits(
    parts: Sequence[PartCost], without: Memory, checkpointed: Memory | None, *,
    gpus: int, memory: float, batch: int, cached: bool, multiple: int = 1,
) -> list[Fit]:  # fmt: skip
    """Every stage, without and with activation checkpointing. memory: bytes of one GPU. cached: cacheable parts are not loaded.

    multiple: of what the share of a GPU must be one, such as 2 where images are paired within it.
    """
    parameters = sum(part.parameters for part in parts if not (cached and part.cacheable))
    trained, largest = sum(part.trained for part in parts), max(part.largest for part in parts)
    found = []
    for pass_memory, checkpointing in ((without, False), (checkpointed, True)):
        if pass_memory is None:
            continue
        for stage in STAGES if gpus > 1 else STAGES[:1]:
            held = states(parameters, trained, stage=stage, gpus=gpus, largest=largest)
            room = memory / MARGIN - held.total - pass_memory.fixed
            most = max(int(room / pass_memory.per_image), 0) // multiple * multiple
            found.append(Fit(stage, checkpointing, held, most, MARGIN * (held.total + pass_memory.at(batch))))
    return found


def recommended(options: Sequence[Fit], *, batch: int) -> Fit | None:
    """The first that takes the wished batch, checkpointing only where no stage does without. Else the roomiest, or None."""
    for option in sorted(options, key=lambda each: (each.checkpointing, each.stage)):
        if option.largest_batch >= batch:
            return option
    best = max(options, key=lambda each: each.largest_batch)
    return best if best.largest_batch > 0 else None


def traffic(
    parts: Sequence[PartCost], *,
    gpus: int, stage: int, batch: int, bandwidth: float, rate: float, cached: bool, repeated: float = 0.0,
) -> Traffic:  # fmt: skip
    """Of one update. bandwidth: bytes per second of one GPU through the slowest link; rate: operations per second it reaches.

    repeated: operations of one image that activation checkpointing does for the second time.

    Rings move (n - 1) / n of a tensor to reduce and scatter it, and as much to gather it. Stages 0 to 2 do both with the trained
    parameters; stage 3 gathers them in the forward and in the backward pass, and scatters the gradients. Frozen parameters
    are whole everywhere and are never sent.
    """
    trained = sum(part.trained for part in parts)
    ring = (gpus - 1) / gpus
    moved = ring * WIDTH * trained * (2 if stage < 3 else 3)
    compute = batch * (sum(part.total for part in parts if not (cached and part.cacheable)) + repeated) / rate
    return Traffic(gpus, stage, moved, moved / bandwidth, compute)
