"""The goals of the operators, computed from measured rows; what was not measured says so and is never estimated.

A goal names the rows it is about (all of them must have been measured), a value per row, and a threshold for the geometric
mean or for every row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.ops.cases import Case, listed
from benchmarks.ops.gate import ALLOWED
from benchmarks.ops.register import work as register_work

Row = Mapping[str, Any]

NOISE = 0.97  # a listed shape may be this much slower than the best baseline before it counts as slower
H200_BYTES_PER_S = 4.3e12  # says which shapes G8 calls tiny: a roof under 3 microseconds


@dataclass(frozen=True)
class Goal:
    """`value(row)` is None where the row lacks it. `over`: "mean" holds the geometric mean to the target, "each" every row.

    cases: keys of the rows. by_least: the same value from least times in place of medians, for comparison. no_slower_than:
    holds every row's ratio to its best baseline.
    """

    name: str
    text: str
    cases: tuple[str, ...]
    value: Callable[[Row], float | None]
    target: float
    over: Literal["mean", "each"] = "mean"
    at_most: bool = False
    no_slower_than: float | None = None
    by_least: Callable[[Row], float | None] | None = None


@dataclass(frozen=True)
class Outcome:
    name: str
    text: str
    target: str
    measured: str
    by_least: str
    rows: str
    worst: str
    reached: str  # yes, no, or why that cannot be said


HEAD = ("goal", "what", "target", "measured", "by least times", "rows", "worst", "reached")


def judge(rows: Sequence[Row], kind: str) -> list[Outcome]:
    """All goals of a device kind, "cpu" or "cuda"; without rows each reads "not measured"."""
    by_key = {row["key"]: row for row in rows if row["threads"] == 1 or kind == "cuda"}
    return [_outcome(goal, by_key, kind) for goal in (cpu_goals() if kind == "cpu" else gpu_goals())]


def _outcome(goal: Goal, rows: Mapping[str, Row], kind: str) -> Outcome:
    found = [(rows[key], value) for key in goal.cases if key in rows and (value := goal.value(rows[key])) is not None]
    count = f"{len(found)} of {len(goal.cases)}"
    if not found:
        missing = "not measured on a GPU" if kind == "cuda" else "not measured"
        return Outcome(goal.name, goal.text, _target(goal), "", "", count, "", missing)
    worst_row, worst = (max if goal.at_most else min)(found, key=lambda pair: pair[1])
    measured = worst if goal.over == "each" else mean([value for _, value in found])
    slow = _slower(goal, [row for row, _ in found])
    reached = (measured <= goal.target if goal.at_most else measured >= goal.target) and not slow
    failed_for_good = not reached and (goal.over == "each" or bool(slow))
    verdict = "rows missing" if len(found) < len(goal.cases) and not failed_for_good else "yes" if reached else "no"
    note = " ".join(filter(None, [f"{worst:.3g} at", worst_row["model"], worst_row["shape"]]))
    if slow:
        note += f"; below {goal.no_slower_than:g} of the best baseline: {', '.join(slow)}"
    return Outcome(goal.name, goal.text, _target(goal), f"{measured:.3g}", _by_least(goal, found), count, note, verdict)


def _target(goal: Goal) -> str:
    text = f"{'<=' if goal.at_most else '>='} {goal.target:g}"
    return text if goal.no_slower_than is None else f"{text}, none < {goal.no_slower_than:g}"


def _slower(goal: Goal, rows: Sequence[Row]) -> list[str]:
    """Rows that are too slow beside their best baseline, where the goal minds."""
    if goal.no_slower_than is None:
        return []
    return [
        f"{row['shape']} ({row['ratio']:.2f} of {row['best_baseline']})" for row in rows
        if row.get("ratio", math.inf) < goal.no_slower_than
    ]  # fmt: skip


def _by_least(goal: Goal, found: Sequence[tuple[Row, float]]) -> str:
    if goal.by_least is None:
        return ""
    values = [value for row, _ in found if (value := goal.by_least(row)) is not None]
    return f"{mean(values):.3g}"


def mean(values: Sequence[float]) -> float:
    """The geometric mean; zero where a value is."""
    return math.exp(sum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0


def faster_than(baseline: str, provider: str = "ours", *, time: str = "median") -> Callable[[Row], float | None]:
    """Times faster than one baseline; "best" is the best of all."""

    def value(row: Row) -> float | None:
        name = row.get("best_baseline") if baseline == "best" else baseline
        times = [row["providers"].get(who, {}).get(time) for who in (name, provider)]
        return times[0] / times[1] if all(times) else None

    return value


def of_ours(field: str, scale: float = 1.0) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        found = row["providers"].get("ours", {}).get(field)
        return None if found is None else float(found) * scale

    return value


def memory_of_best(row: Row) -> float | None:
    """Our peak memory over that of the best baseline."""
    ours, best = (row["providers"].get(name, {}).get("peak_bytes") for name in ("ours", row.get("best_baseline")))
    return ours / best if ours is not None and best else None


def error_ratio(row: Row) -> float | None:
    return row.get("error_ratio")


def keys(
    kind: str, op: str, mode: str, dtype: str, keep: Callable[[Case], bool] = lambda case: True, *, mask: bool = False,
    shared: bool = False,
) -> tuple[str, ...]:  # fmt: skip
    """The listed cases of these names, as far as `keep` likes them."""
    wanted = (op, mode, dtype, mask, shared)
    return tuple(
        case.key for case in listed(kind)
        if (case.op, case.mode, case.dtype, case.mask, case.shared) == wanted and keep(case)
    )  # fmt: skip


def versus(name: str, text: str, cases: tuple[str, ...], targets: Mapping[str, float], provider: str = "ours") -> Iterator[Goal]:
    """One goal per baseline, and no listed shape slower than the best of them."""
    for baseline, target in targets.items():
        what = f"{text}: times faster than {baseline}"
        least = faster_than(baseline, provider, time="least")
        yield Goal(name, what, cases, faster_than(baseline, provider), target, no_slower_than=NOISE, by_least=least)


def cpu_goals() -> Iterator[Goal]:
    register = lambda mode, dtype: keys("cpu", "register_attention", mode, dtype)  # noqa: E731
    module = lambda large: keys(  # noqa: E731
        "cpu", "slot_module", "train", "float32", lambda case: ((case["N"], case["D"]) == (1024, 768)) == large
    )
    yield from versus("C1", "register attention, bf16, forward", register("forward", "bfloat16"), {"sdpa": 1.6, "eager": 2.3})
    yield from versus("C2", "the same, forward + backward", register("train", "bfloat16"), {"sdpa": 2.5, "eager": 1.4})
    yield from versus("C3", "the same, slots only", register("slots", "bfloat16"), {"eager": 1.8, "sdpa": 3.3})
    yield from versus("C4", "register attention, fp32, forward", register("forward", "float32"), {"sdpa": 1.2})
    yield from versus("C4", "the same, forward + backward", register("train", "float32"), {"sdpa": 1.1})
    yield from versus("C4", "the same, slots only", register("slots", "float32"), {"sdpa": 1.4})
    layers = tuple(key for dtype in ("float32", "bfloat16") for key in keys("cpu", "register_layer", "forward", dtype, mask=True))
    yield from versus("C5", "layer, registers projected once, against each image's own with mask", layers, {"sdpa": 1.6})
    yield from versus("C5", "layer, registers cached, against the same", layers, {"sdpa": 2.2}, "ours-cached")
    for mode, text, target in (("forward", "forward", 3.0), ("train", "forward + backward", 2.0)):
        few_slots = keys("cpu", "slot_attention", mode, "float32", lambda case: case["K"] <= 11)
        yield from versus("C6", f"slot attention, one step, fp32, K <= 11, {text}", few_slots, {"eager": target})
    text = "slot module, fp32, forward + backward"
    yield from versus("C7", f"{text}, N=1024 D=768 K=7", module(True), {"eager": 3.8, "compile": 3.5})
    yield from versus("C8", f"{text}, the other three shapes", module(False), {"eager": 2.2, "compile": 1.9})
    yield from _bits_and_errors("cpu")


def gpu_goals() -> Iterator[Goal]:
    def register(mode: str, keep: Callable[[Case], bool] = lambda case: True, *, mask: bool = False) -> tuple[str, ...]:
        return keys("cuda", "register_attention", mode, "bfloat16", keep, mask=mask)

    best, text = faster_than("best"), "times faster than the best baseline"
    many = register("forward", lambda case: case["B"] >= 8)
    yield Goal("G1", f"register attention, bf16, forward, B >= 8: {text}", many, best, 1.5, no_slower_than=1.1)
    masked = register("forward", lambda case: case["B"] >= 8, mask=True)
    yield Goal("G2", f"the same with CODA's mask: {text}", masked, best, 2.0)
    long = register("forward", lambda case: case["B"] >= 8 and case["M"] >= 1024)
    yield Goal("G3", "forward, M >= 1024, B >= 8: fraction of the roof", long, of_ours("roof"), 0.6, "each")
    for name, mode, what, times, roof in (
        ("G4", "backward", "all gradients", 3.0, 0.4),
        ("G5", "backward-slots", "slots only", 4.0, 0.5),
    ):
        most = register(mode, lambda case: case["B"] == 32)
        yield Goal(name, f"backward, {what}, B = 32: {text}", most, best, times)
        yield Goal(name, f"backward, {what}, B = 32: fraction of the roof", most, of_ours("roof"), roof, "each")
    few = register("backward", lambda case: case["B"] <= 2 and case["M"] == 4096)
    yield Goal("G6", f"backward, B <= 2, M = 4096: {text}", few, best, 6.0)
    narrow = register("backward", lambda case: case["B"] <= 2 and case["M"] == 4096 and case["H"] == 8)
    yield Goal("G6", "the same at SD1.5's width: microseconds", narrow, of_ours("median", 1e6), 15.0, "each", at_most=True)
    maps = register("maps")
    yield Goal("G7", f"with maps, forward + backward: {text} that gives maps", maps, best, 4.0)
    yield Goal("G7", "with maps: peak memory over that baseline's", maps, memory_of_best, 0.25, at_most=True)
    tiny = register("forward", lambda case: register_work(case)[1] / H200_BYTES_PER_S < 3e-6)
    yield Goal("G8", "forward of tiny shapes: microseconds", tiny, of_ours("median", 1e6), 6.0, "each", at_most=True)
    for mode, what, compiled in (("forward", "forward", 1.5), ("train", "forward + backward", 2.0)):
        step = keys("cuda", "slot_attention", mode, "bfloat16")
        for baseline, target in (("eager", 3.0), ("compile", compiled)):
            yield Goal("G9", f"slot attention, one step, {what}: times faster than {baseline}", step, faster_than(baseline), target)
    module = keys("cuda", "slot_module", "train", "bfloat16", lambda case: (case["N"], case["D"], case["K"]) == (1024, 768, 7))
    what = "slot module, N=1024 D=768 K=7 B=32, forward + backward: times faster than eager"
    yield Goal("G10", what, module, faster_than("eager"), 2.5)
    yield from _bits_and_errors("cuda")


def _bits_and_errors(kind: str) -> Iterator[Goal]:
    """G11 and G12, which hold on a CPU too."""
    attention = [case for case in listed(kind) if case.op in ("register_attention", "slot_attention")]
    backward = tuple(case.key for case in attention if case.backward)
    what = "backward gives the same bits in any run and for any batch size (1 = yes)"
    yield Goal("G11", what, backward, of_ours("same_bits"), 1.0, "each")
    register = tuple(case.key for case in attention if case.op == "register_attention")
    what = "register attention, error against float64 over that of sdpa, worst tensor"
    yield Goal("G12", what, register, error_ratio, ALLOWED, "each", at_most=True)
