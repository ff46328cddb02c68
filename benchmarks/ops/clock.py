"""Time, memory and the device's own ceilings.

All contestants of a row take turns in one process, in a new order each round, on inputs that rotate. Medians, so that an
interrupted round decides nothing. On a CPU a turn repeats a short call until it lasts 2 ms; with one thread it counts processor
time, in which other programs show only through the caches they share, with more threads wall time. On a GPU every turn starts
with a flushed L2 and is timed by events; where the fastest call is short all of them are replayed from CUDA graphs that hold
one call per input set, so that what is timed is the GPU and not Python.
"""

from __future__ import annotations

import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[int], Any]

LEAST_ROUNDS = 9
SLOW_ROUNDS = 3  # for a contestant that is SLOW times slower than the fastest: its exact time changes nothing
SLOW = 8.0
TURN = 2e-3  # seconds
GRAPH_BELOW = 500e-6  # seconds of the fastest call with its launches
FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Timing:
    """Seconds per call. `spread`: distance between the quartiles over the median; `timer`: processor, wall, events or graph."""

    median: float
    least: float
    spread: float
    rounds: int
    timer: str

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def race(calls: Mapping[str, Call], *, sets: int, device: str, seconds: float, most_rounds: int = 100) -> dict[str, Timing]:
    """Times each call, about `seconds` each and at least LEAST_ROUNDS rounds. The calls have run before."""
    turns = _turns(calls, sets, device)
    fastest = min((turn.estimate for turn in turns.values()), default=0.0)
    slow = {name for name, turn in turns.items() if turn.estimate > SLOW * fastest}
    quick_round = sum(turn.estimate * turn.repeats for name, turn in turns.items() if name not in slow)
    rounds = int(min(max(seconds * len(turns) / max(quick_round, 1e-9), LEAST_ROUNDS), most_rounds))
    samples: dict[str, list[float]] = {name: [] for name in turns}
    order, shuffle = list(turns), random.Random(0)
    with _without_collections():
        for number in range(rounds):
            shuffle.shuffle(order)
            for name in order:
                if number < SLOW_ROUNDS or name not in slow:
                    samples[name].append(turns[name].sample(number))
    return {name: _timing(samples[name], turn.timer) for name, turn in turns.items()}


class Turn:
    """One contestant: `sample(round)` is seconds per call, `estimate` a first guess of it."""

    def __init__(self, call: Call) -> None:
        self.call, self.repeats = call, 1
        alone = torch.get_num_threads() == 1
        self.timer, self.clock = ("processor", time.process_time) if alone else ("wall", time.perf_counter)
        self.estimate = min(self.sample(0), self.sample(1))
        self.repeats = max(1, min(200, round(TURN / max(self.estimate, 1e-7))))

    def sample(self, number: int) -> float:
        before = self.clock()
        for index in range(number * self.repeats, (number + 1) * self.repeats):
            self.call(index)
        return (self.clock() - before) / self.repeats


class EventTurn(Turn):
    """On a GPU: one call between two events, behind a flush that also lets Python run ahead."""

    timer, calls = "events", 1

    def __init__(self, call: Call) -> None:
        self.call, self.repeats = call, 1
        self.estimate = min(self.sample(number) for number in range(3))

    def sample(self, number: int) -> float:
        _l2().zero_()
        return _between_events(lambda: self.call(number)) / self.calls


class GraphTurn(EventTurn):
    """A CUDA graph with one call per input set: every call finds its inputs cold, and the launch is paid once."""

    timer = "graph"

    def __init__(self, call: Call, sets: int) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for index in range(sets):
                call(index)
        self.calls = sets
        super().__init__(lambda _: graph.replay())


def _turns(calls: Mapping[str, Call], sets: int, device: str) -> dict[str, Turn]:
    """One kind of timer for all contestants of a row, but for those that cannot be captured."""
    if device == "cpu":
        return {name: Turn(call) for name, call in calls.items()}
    turns: dict[str, Turn] = {name: EventTurn(call) for name, call in calls.items()}
    if min((turn.estimate for turn in turns.values()), default=1.0) < GRAPH_BELOW:
        turns |= {name: graph for name, call in calls.items() if (graph := _captured(call, sets)) is not None}
    return turns


def _captured(call: Call, sets: int) -> GraphTurn | None:
    """None where something in it cannot be captured, such as a synchronisation."""
    try:
        return GraphTurn(call, sets)
    except RuntimeError:
        torch.cuda.synchronize()
        return None


@functools.cache
def _l2() -> Tensor:
    """More than any L2 holds; writing it evicts the rest."""
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def _between_events(work: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def _timing(samples: list[float], timer: str) -> Timing:
    middle = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4)
    return Timing(middle, min(samples), (high - low) / middle, len(samples), timer)


@contextmanager
def _without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def own_stream(device: str) -> Iterator[None]:
    """On a GPU, a stream other than the default one: a backward pass runs where its forward did, and only such a stream can be
    captured. Memory goes back afterwards, since the next shape cuts it otherwise."""
    if device == "cpu":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def peak_bytes(call: Call, device: str) -> int:
    """Most bytes that one call held at once beyond its inputs, of torch's allocator; a library's own are not seen."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call(0)
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@dataclass(frozen=True)
class Roof:
    """What this device does at best: bytes copied per second (read and written), operations of large products per dtype."""

    bytes_per_s: float
    flops_per_s: Mapping[str, float]

    def seconds(self, flops: float, moved: float, dtype: str) -> float:
        return max(moved / self.bytes_per_s, flops / self.flops_per_s[dtype])

    def as_row(self) -> dict[str, Any]:
        return {"bytes_per_s": self.bytes_per_s, "flops_per_s": dict(self.flops_per_s)}


def measure_roof(device: str, dtypes: Mapping[str, torch.dtype]) -> Roof:
    """A large copy and a large square product of random numbers. A CPU may widen half precision, so float32's rate counts there.

    On a CPU, torch leaves products to one library and convolutions to another, and either may not use all of a processor: the
    faster counts.
    """
    rates = {name: _product_rate(device, dtype) for name, dtype in dtypes.items()}
    if device == "cpu":
        rates = {name: max(rate, rates["float32"]) for name, rate in rates.items()}
    return Roof(_copy_rate(device), rates)


def _copy_rate(device: str) -> float:
    elements = 2**25 if device == "cpu" else 2**30
    source = torch.randn(elements // 16, device=device).repeat(16)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _product_rate(device: str, dtype: torch.dtype) -> float:
    side = 512 if device == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rate = 2 * side**3 / _best(lambda: left @ right, device)
    return max(rate, _convolution_rate(dtype)) if device == "cpu" else rate


def _convolution_rate(dtype: torch.dtype) -> float:
    image, weight = torch.randn(8, 64, 32, 32), torch.randn(256, 64, 3, 3)
    image, weight = (x.to(dtype, memory_format=torch.channels_last) for x in (image, weight))
    flops = 2 * image.numel() * weight[:, 0].numel()
    return flops / _best(lambda: torch.conv2d(image, weight, padding=1), "cpu")


def _best(work: Callable[[], Any], device: str, *, tries: int = 5) -> float:
    work()
    return min(_seconds(work, device) for _ in range(tries))


def _seconds(work: Callable[[], Any], device: str) -> float:
    if device != "cpu":
        return _between_events(work)
    before = time.perf_counter()
    work()
    return time.perf_counter() - before
