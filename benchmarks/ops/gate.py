"""The gate before the clock: outputs and gradients against float64, and whether a backward gives the same bits again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.ops.cases import Case
from benchmarks.ops.provider import Forward, Problem
from benchmarks.ops.step import Drawn, Step

# Relative errors that rounding can explain, with room for long sums; anything beyond is another function.
BOUND = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 3e-2}
AUTOCAST_BOUND = 6e-2  # the module: three iterations through GRU and MLP
NO_GRADIENT = 1e-9  # a gradient this small beside the others is zero in theory, and compared with the others in size
ALLOWED = 1.2  # times the error of the yardstick


def bound(case: Case) -> float:
    return AUTOCAST_BOUND if case.op == "slot_module" and case.dtype != "float32" else BOUND[case.dtype]


def names(case: Case, problem: Problem) -> tuple[str, ...]:
    """What a step returns, in order."""
    if case.backward_alone:
        return tuple("d " + name for name in problem.wanted(case))
    return (*problem.outputs(case), *("d " + name for name in problem.wanted(case)))


@dataclass
class Gate:
    """Collects squared errors of each provider over the input sets, so that one lucky set decides nothing."""

    case: Case
    problem: Problem
    off: dict[str, list[Tensor]] = field(default_factory=dict)
    size: list[Tensor] = field(default_factory=list)

    def reference(self, drawn: Drawn) -> tuple[Tensor, ...]:
        wide = drawn.in_float64()
        found = Step(self.case, self.problem.reference(self.case), [wide], self.problem.wanted(self.case))(0)
        squares = [tensor.detach().square().sum() for tensor in found]
        self.size = [old + new for old, new in zip(self.size, squares, strict=True)] if self.size else squares
        return found

    def add(self, provider: str, found: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in reference]:
            squares = [torch.tensor(math.inf) for _ in reference]
        else:
            pairs = zip(found, reference, strict=True)
            squares = [(left.detach().double() - right.detach()).square().sum() for left, right in pairs]
        before = self.off.get(provider)
        self.off[provider] = [old + new for old, new in zip(before, squares, strict=True)] if before else squares

    def errors(self, provider: str) -> dict[str, float]:
        """|found - float64| / |float64| of each output and gradient; infinite where it is not a number."""
        sizes = [math.sqrt(float(size)) for size in self.size]
        named = list(zip(names(self.case, self.problem), sizes, self.off[provider], strict=True))
        largest = max((size for name, size, _ in named if name.startswith("d ")), default=0.0)
        found = {}
        for name, size, square in named:
            error = math.sqrt(float(square)) / (size if size > NO_GRADIENT * largest else largest or 1.0)
            found[name] = error if math.isfinite(error) else math.inf
        return found


def error_ratio(found: Mapping[str, float], yardstick: Mapping[str, float]) -> float:
    """The worst ratio of an error to the yardstick's error in the same tensor."""
    pairs = [(error, yardstick[name]) for name, error in found.items()]
    return max(error / allowed if allowed > 0 else 1.0 if error == 0 else math.inf for error, allowed in pairs)


def same_bits(case: Case, problem: Problem, forward: Forward, drawn: Drawn) -> bool:
    """Whether a second run gives the same bits, and the first image alone the same bits as in its batch."""
    first, again, alone = (Step(case, forward, [one], problem.wanted(case))(0) for one in (drawn, drawn, drawn.first_image()))
    if not all(torch.equal(left, right) for left, right in zip(first, again, strict=True)):
        return False
    of_one_image = [not name.startswith("d register_") for name in names(case, problem)]
    return all(torch.equal(batched[:1], single) for batched, single, one in zip(first, alone, of_one_image, strict=True) if one)
