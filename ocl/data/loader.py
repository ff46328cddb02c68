"""Batches of a dataset: the same sequence whatever the number of workers, from any position.

Each sample has a number in an endless stream; its index (`Order`) and its flip are functions of that number and the seed, so
a run resumes by giving `start`, the number of samples already used. No global random state is read or changed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, final

import torch
from torch.utils.data import DataLoader

from ocl.data.cache import Cache
from ocl.data.files import SKIPPED, report_skipped
from ocl.data.order import ENDLESS, Order, share
from ocl.data.sample import Dataset, Sample, collate
from ocl.data.transforms import flip as flipped
from ocl.data.transforms import is_flipped
from ocl.errors import ConfigError, DataError, RangeError, ShapeError
from ocl.types import Batch


def batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    shuffle: bool = True,
    flip: float = 0.0,
    cache: Cache | None = None,
    rank: int = 0,
    size: int = 1,
    timeout: float = 0.0,
) -> Iterator[Batch]:
    """An endless stream of full batches. Where an epoch ends inside a batch, the next epoch fills it up.

    start: samples already used, any number. workers: processes that read ahead (0: this one reads).
    flip: probability that a sample is mirrored. cache: what was computed of this dataset before, to be added to the batches.
    rank, size: this process reads its share (`order.share`) of every batch; the shares of all `size` processes are the batch.
    timeout: seconds without a batch after which a worker counts as hung; 0 waits for ever.
    Samples that stand in for broken files (on_error="skip") are used, and the files are added to `dataset.skipped` in this
    process. Raises DataError for a broken sample, for one that has changed since the cache was written, and when a worker dies
    or hangs.
    """
    if batch_size < 1 or start < 0 or workers < 0 or not 0 <= flip <= 1:
        raise ConfigError(
            "batches need batch_size >= 1, start >= 0, workers >= 0 and flip in [0, 1], "
            f"got {batch_size}, {start}, {workers} and {flip}."
        )
    order = Order(len(dataset), seed, shuffle)
    firsts, places = count(start, batch_size), share(batch_size, rank, size)
    jobs = ([(first + place, order.index(first + place)) for place in places] for first in firsts)
    return _stream(_Reader(dataset, seed=seed, flip=flip, cache=cache), jobs, workers, timeout)


def batches_of(dataset: Dataset, jobs: Iterable[Sequence[int]], *, workers: int = 0) -> Iterator[Batch]:
    """One batch for each list of indices, in that order. Stand-ins for broken files are used, as in training."""
    return _stream(_Reader(dataset), ([(index, index) for index in job] for job in jobs), workers)


def evaluation_batches(
    dataset: Dataset, *, batch_size: int, limit: int | None = None, workers: int = 0
) -> Iterator[Batch]:
    """The first `limit` samples (default: all) once each and in order; the last batch may be smaller.

    Samples that stand in for broken files are left out, so that no image is scored twice; `dataset.skipped` names the files.
    """
    if batch_size < 1 or workers < 0 or (limit is not None and limit < 1):
        raise ConfigError(
            f"batches need batch_size >= 1, workers >= 0 and limit >= 1, got {batch_size}, {workers} and {limit}."
        )
    if limit is None and len(dataset) >= ENDLESS:
        raise ConfigError(f"{type(dataset).__name__} is endless; pass limit=... to evaluate a part of it.")
    total = len(dataset) if limit is None else min(limit, len(dataset))
    jobs = ([(i, i) for i in range(first, min(first + batch_size, total))] for first in range(0, total, batch_size))
    return _stream(_Reader(dataset, stand_ins=False), jobs, workers)


Job = list[tuple[int, int]]  # (number in the stream, index in the dataset) of each sample of a batch


@dataclass(frozen=True)
class _Parcel:
    """What a worker sends: a batch (None: no sample was good) and the broken files met, or the error that ends the stream."""

    batch: Batch | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    error: Exception | None = None


@final
class _Reader(torch.utils.data.Dataset[_Parcel]):
    def __init__(
        self, dataset: Dataset, *, seed: int = 0, flip: float = 0.0, stand_ins: bool = True, cache: Cache | None = None
    ) -> None:
        self.dataset = dataset
        self.cache = cache
        self.seed = seed
        self.flip = flip
        self.stand_ins = stand_ins

    def __getitem__(self, job: Job) -> _Parcel:
        try:
            samples = [(number, self.dataset[index]) for number, index in job]
            broken: dict[str, str] = {}
            for _, sample in samples:
                broken.update(sample.properties.get(SKIPPED, {}))
            used = [
                self._oriented(sample, number)
                for number, sample in samples
                if self.stand_ins or SKIPPED not in sample.properties
            ]
            batch = collate(used) if used else None
            if batch is not None and self.cache is not None:
                batch = self._with_computed(batch, self.cache, job, samples)
            return _Parcel(batch, broken)
        except (DataError, RangeError, ShapeError) as error:
            return _Parcel(error=error)  # raised by the main process, in its own words

    def _oriented(self, sample: Sample, number: int) -> Sample:
        return flipped(sample) if is_flipped(self.flip, seed=self.seed, number=number) else sample

    def _with_computed(self, batch: Batch, cache: Cache, job: Job, samples: Sequence[tuple[int, Sample]]) -> Batch:
        for (_, index), (_, sample) in zip(job, samples, strict=True):
            cache.check(index, sample.image)
        entries = [(index, is_flipped(self.flip, seed=self.seed, number=number)) for number, index in job]
        return replace(batch, features=cache.features(entries), moments=cache.moments(entries))


def _stream(reader: _Reader, jobs: Iterable[Job], workers: int, timeout: float = 0.0) -> Iterator[Batch]:
    record: dict[str, str] = getattr(reader.dataset, "skipped", {})
    for parcel in _parcels(reader, jobs, workers, timeout):
        if parcel.error is not None:
            raise parcel.error
        report_skipped(record, parcel.skipped)
        if parcel.batch is not None:
            yield parcel.batch


def _parcels(reader: _Reader, jobs: Iterable[Job], workers: int, timeout: float) -> Iterator[_Parcel]:
    loader: DataLoader[_Parcel] = DataLoader(
        reader,
        batch_size=None,
        sampler=jobs,
        num_workers=workers,
        timeout=timeout if workers else 0.0,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_main_process,
        generator=torch.Generator(),  # without one, the loader would draw its base seed from the global state
    )
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError) as error:
        if str(error).startswith("DataLoader timed out"):
            raise DataError(
                f"the {workers} worker processes that read {type(reader.dataset).__name__} gave no batch for {timeout:g} s: a file "
                "system or a sample hangs; resume to try again, raise training.data_timeout, or find it with workers=0."
            ) from error
        cause = _cause(error, workers)
        if cause is None:
            raise
        raise DataError(
            f"a worker process that reads {type(reader.dataset).__name__} died ({cause}), often for lack of memory or shared "
            "memory (/dev/shm): use fewer workers or a smaller batch, or workers=0 to see the error where it happens."
        ) from cause


def _cause(error: Exception, workers: int) -> Exception | None:
    """What the loader says of a dead worker, None where none died. It tells so at once, or soon after a pipe broke."""
    if isinstance(error, RuntimeError):
        return error if str(error).startswith("DataLoader worker (pid") else None
    if workers == 0 or str(error).startswith("Caught "):  # an error of the dataset itself, here or in a worker
        return None
    try:
        time.sleep(1)
    except RuntimeError as late:
        return late
    return error


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A signal to the whole process group (Ctrl-C, `timeout`, Slurm) must not kill the readers of a run that saves itself.

    SIGTERM from the main process still ends a worker: that is how Python ends those that are left when it exits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS; only there does a SIGTERM to the group still end the run
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _as_it_is(value: Any) -> Any:
    return value
