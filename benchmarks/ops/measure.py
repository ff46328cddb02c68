"""One row: every provider through the gate, then those that passed against the clock."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops import register, slots
from benchmarks.ops.cases import Case
from benchmarks.ops.clock import Roof, Timing, own_stream, peak_bytes, race
from benchmarks.ops.gate import ALLOWED, Gate, bound, error_ratio, same_bits
from benchmarks.ops.provider import Problem, Provider, Unavailable
from benchmarks.ops.step import Drawn, Step, draw

PROBLEMS: dict[str, Problem] = {
    "register_attention": register.PROBLEM, "register_layer": register.LAYER,
    "slot_attention": slots.PROBLEM, "slot_module": slots.MODULE,
}  # fmt: skip
OURS = {provider.name for problem in PROBLEMS.values() for provider in problem.providers if provider.role == "ours"}
SETS = 3
YARDSTICKS = ("sdpa", "eager")  # whose errors ours are compared with: the first that there is
NO_BACKEND = "torch has no such backend for these inputs"


def provider_names() -> list[str]:
    return list(dict.fromkeys(provider.name for problem in PROBLEMS.values() for provider in problem.providers))


def chosen(problem: Problem, names: Sequence[str] | None, *, quick: bool) -> list[Provider]:
    """Those that were named; without names all but our own slow path, in a quick run also but those that compile for seconds."""
    if names:
        return [provider for provider in problem.providers if provider.name in names]
    return [provider for provider in problem.providers if provider.name != "reference" and not (quick and provider.compiled)]


def measure(case: Case, providers: Sequence[Provider], device: str, *, roof: Roof, seconds: float) -> dict[str, Any]:
    """A row of the results. No speed is in it for a provider whose result is wrong, or that cannot do the case."""
    problem = PROBLEMS[case.op]
    torch._dynamo.reset()  # else the ninth shape of a compiled function would silently run uncompiled
    with own_stream(device), warnings.catch_warnings(), _keep_for_backward(case):
        warnings.simplefilter("ignore")  # forced backends explain at length why they refuse
        drawn = draw(case, problem, device, count=SETS)
        steps, found = _prepare(case, problem, providers, drawn)
        _gate(case, problem, steps, found, drawn)
        peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
        times = race(steps, sets=SETS, device=device, seconds=seconds)
    for name, timing in times.items():
        found[name] |= {"peak_bytes": peaks[name], **timing.as_row()}
    row = {**case.as_row(), "device": device, "threads": torch.get_num_threads(), "providers": found}
    return {**row, **_ratios(found, providers), **_rates(case, problem, found, times, roof)}


def broken(row: Mapping[str, Any], name: str) -> bool:
    """Whether a provider of our own gave a wrong result, or none."""
    return name in OURS and "median" not in row["providers"][name]


def _keep_for_backward(case: Case) -> AbstractContextManager[Any]:
    """A compiled backward frees its inputs on the way unless it is told that it will run again."""
    return torch._functorch.config.patch(donated_buffer=False) if case.backward_alone else nullcontext()


def _prepare(
    case: Case, problem: Problem, providers: Sequence[Provider], drawn: Sequence[Drawn]
) -> tuple[dict[str, Step], dict[str, dict[str, Any]]]:
    """Steps of the providers that run, and an entry in the results for each."""
    steps: dict[str, Step] = {}
    found: dict[str, dict[str, Any]] = {}
    for provider in providers:
        reason = _attempt(partial(_start, case, problem, provider, drawn, steps))
        found[provider.name] = {} if reason is None else {"unavailable": reason}
    return steps, found


def _start(case: Case, problem: Problem, provider: Provider, drawn: Sequence[Drawn], steps: dict[str, Step]) -> None:
    step = Step(case, provider.make(case), drawn, problem.wanted(case))
    step(0)
    steps[provider.name] = step


def _gate(case: Case, problem: Problem, steps: dict[str, Step], found: dict[str, dict[str, Any]], drawn: Sequence[Drawn]) -> None:
    """Takes wrong providers out of `steps`; adds errors to what was found."""
    gate = Gate(case, problem)
    for index, one in enumerate(drawn):
        reference = gate.reference(one)
        for name in list(steps):
            if reason := _attempt(partial(_compare, gate, name, steps[name], index, reference)):
                found[name] = {"unavailable": reason}
                del steps[name]
    for name in list(steps):
        errors = gate.errors(name)
        found[name]["errors"] = errors
        if (worst := max(errors.values())) > bound(case):
            found[name]["wrong"] = f"{max(errors, key=lambda key: errors[key])} off by {worst:.1e}, more than {bound(case):.0e}"
            del steps[name]
    for name, step in steps.items():
        if name == "ours" and case.backward and case.op != "slot_module":
            found[name]["same_bits"] = same_bits(case, problem, step.forward, drawn[0])


def _compare(gate: Gate, name: str, step: Step, index: int, reference: Sequence[Tensor]) -> None:
    gate.add(name, step(index), reference)


def _attempt(work: Callable[[], None]) -> str | None:
    """None where it works; else the reason in a line. A contestant that fails must not stop the others."""
    try:
        work()
    except Unavailable as reason:
        return str(reason)
    except Exception as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        first = (str(error).strip() or "no reason given").splitlines()[0]
        return NO_BACKEND if "No viable backend" in first else f"{type(error).__name__}: {first}"[:160]
    return None


def _ratios(found: dict[str, dict[str, Any]], providers: Sequence[Provider]) -> dict[str, Any]:
    """How many times faster ours is than the best baseline, and its error beside the yardstick's."""
    baselines = [provider.name for provider in providers if provider.role == "baseline" and "median" in found[provider.name]]
    best = min(baselines, key=lambda name: found[name]["median"], default=None)
    row: dict[str, Any] = {"best_baseline": best}
    if best is not None and "median" in found.get("ours", {}):
        row["ratio"] = found[best]["median"] / found["ours"]["median"]
    yardstick = next((name for name in YARDSTICKS if "errors" in found.get(name, {}) and "wrong" not in found[name]), None)
    if yardstick is not None and "errors" in found.get("ours", {}):
        ratio = error_ratio(found["ours"]["errors"], found[yardstick]["errors"])
        row |= {"yardstick": yardstick, "error_ratio": ratio, "error_ok": ratio <= ALLOWED or yardstick != "sdpa"}
    return row


def _rates(case: Case, problem: Problem, found: dict[str, Any], times: dict[str, Timing], roof: Roof) -> dict[str, Any]:
    """Adds GB/s, TFLOP/s and the fraction of the roof to each time, where operations and bytes are counted."""
    if problem.work is None:
        return {}
    flops, moved = problem.work(case)
    least = roof.seconds(flops, moved, case.dtype)
    for name, timing in times.items():
        found[name] |= {"gb_per_s": moved / timing.median / 1e9, "tflop_per_s": flops / timing.median / 1e12,
                        "roof": least / timing.median}
    return {"flops": flops, "bytes": moved, "roof_seconds": least}
