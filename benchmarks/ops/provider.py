"""A provider is one way to compute an operator: a name, and a function that returns the forward pass for a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from benchmarks.ops.cases import Case

Inputs = Mapping[str, Tensor]
Forward = Callable[[Inputs], tuple[Tensor, ...]]
Role = Literal["baseline", "ours", "shown"]


class Unavailable(Exception):
    """A provider cannot do a case, and the text says why; reported in place of a time."""


@dataclass(frozen=True)
class Provider:
    """`make(case)` prepares the forward pass or raises Unavailable. Role "shown": timed, but no baseline (it is given other
    inputs, or is our own slow path). `compiled`: takes seconds to prepare, so that a quick run leaves it out."""

    name: str
    make: Callable[[Case], Forward]
    role: Role = "baseline"
    compiled: bool = False


@dataclass(frozen=True)
class Problem:
    """What an operator is apart from its implementations.

    inputs(case, device, seed): fresh tensors; those in wanted(case) are leaves that require a gradient.
    reference(case): the formula in plain PyTorch, which runs in float64 on the same numbers. work(case): the floating-point
    operations and bytes that no implementation can avoid, or None where they are not counted.
    """

    providers: tuple[Provider, ...]
    inputs: Callable[[Case, str, int], dict[str, Tensor]]
    wanted: Callable[[Case], tuple[str, ...]]
    outputs: Callable[[Case], tuple[str, ...]]
    reference: Callable[[Case], Forward]
    work: Callable[[Case], tuple[float, float]] | None = None
