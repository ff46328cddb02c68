"""A small but whole training program, run in a process of its own and killed while it trains.

    python program.py RUN --kill-after 9 4     train in child processes, each killed after about so many batches, then on
    python program.py RUN --kill-at 3 7        the same, each killed at its n-th file operation inside a checkpoint
    python program.py RUN                      train in this process, until the end or a signal

Everything random that a model may do is in `TinyModel`: slot noise from the generator, dropout from the global state, batch
statistics in buffers; a frozen part must stay out of checkpoints. Every sample consumed is noted in RUN/keys.txt.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # what the first update and the log import lazily: here once, not in every fork
import torch.utils.tensorboard
from torch import nn

from ocl.data.loader import batches
from ocl.data.sample import Dataset, Sample
from ocl.losses import Reconstruction
from ocl.nn.draws import normal
from ocl.nn.freezing import Frozen
from ocl.train import LocalEngine, Optimizer, Outcome, Schedule, Training, fit
from ocl.types import Batch, Decoding, Features, Output, Randomness, Slots

sys.path.append(str(Path(__file__).parents[1]))  # tests
from kills import kill_in_checkpoint

WIDTH, NUM_SLOTS, SIZE = 16, 3, 12
GONE = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Squares(Dataset):
    """Fifty small images, each a bright square on noise."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 60, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        top, left = torch.randint(0, SIZE - 4, (2,), generator=generator).tolist()
        image[index % 3, top : top + 4, left : left + 4] = 250
        return Sample(image=image, key=f"square-{index}")


class TinyModel(nn.Module):
    """One round of attention from noisy slots, decoded to a small picture."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = Frozen(nn.Conv2d(3, WIDTH, 4, stride=4))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.mean = nn.Parameter(torch.randn(NUM_SLOTS, WIDTH))
        self.dropout = nn.Dropout(0.1)
        self.decode = nn.Linear(WIDTH, 3)

    def forward(self, batch: Batch, *, generator: Randomness = None) -> Output:
        tokens = self.norm(self.frozen.module(batch.image).flatten(2)).mT
        noise = normal((len(batch), NUM_SLOTS, WIDTH), generator, device=tokens.device)
        attn = torch.softmax((self.mean + 0.1 * noise) @ self.project(tokens).mT, dim=1)
        vectors = self.dropout(attn @ tokens / attn.sum(-1, keepdim=True))
        grid = (SIZE // 4, SIZE // 4)
        prediction = (attn.mT @ self.decode(vectors)).mT.unflatten(-1, grid)
        target = nn.functional.avg_pool2d(batch.image, 4)
        decoding = Decoding(prediction, target, attn.unflatten(-1, grid))
        return Output(Features(tokens, grid), Slots(vectors, attn, grid), decoding)


def training(**changes: object) -> Training:
    """Options under which everything that a checkpoint must hold is in use."""
    options: dict[str, object] = dict(
        steps=60, batch_size=4, accumulate=2, optimizer=Optimizer(lr=1e-2, weight_decay=0.01),
        schedule=Schedule(kind="cosine", warmup_steps=5), ema=0.9, seed=3, log_every=4, checkpoint_every=5,
    )  # fmt: skip
    return Training(**{**options, **changes})  # type: ignore[arg-type]


def train(run: Path, options: Training) -> Outcome:
    torch.manual_seed(0)
    engine = LocalEngine(TinyModel(), options)
    run.mkdir(parents=True, exist_ok=True)
    return fit(engine, [Reconstruction()], partial(noted_batches, run, options), options, run=run, resume=True)


def noted_batches(run: Path, options: Training, start: int) -> Iterator[Batch]:
    """The loader's batches; RUN/keys.txt gets 'start N' and then one line of keys per batch."""
    notes = os.open(run / "keys.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(notes, f"start {start}\n".encode())
    for batch in batches(Squares(), batch_size=options.batch_size, seed=options.seed, start=start, workers=options.workers):
        os.write(notes, (" ".join(batch.keys) + "\n").encode())
        yield batch


def in_child(run: Path, *, kill_after: int | None = None, kill_at: int | None = None) -> None:
    lines = count_lines(run / "keys.txt")
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            kill_in_checkpoint(kill_at)
        train(run, training())
        os._exit(0)
    if kill_after is not None:
        while count_lines(run / "keys.txt") <= lines + kill_after and os.waitid(os.P_PID, child, GONE) is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}", flush=True)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--kill-after", type=int, nargs="*", default=[])
    parser.add_argument("--kill-at", type=int, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for num_batches in options.kill_after:
        in_child(options.run, kill_after=num_batches)
    for number in options.kill_at:
        in_child(options.run, kill_at=number)
    outcome = train(options.run, training(steps=options.steps, workers=options.workers))
    print(f"ended at {outcome.step} by {outcome.stopped_by}", flush=True)


if __name__ == "__main__":
    main()
