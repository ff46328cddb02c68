"""One call of a provider on one of several sets of inputs: the forward pass, with gradients where the case asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.ops.cases import Case
from benchmarks.ops.provider import Forward, Inputs, Problem

PER_IMAGE = ("query", "key", "value", "slot_mask", "bias")


@dataclass(frozen=True)
class Drawn:
    """Inputs, and the gradients that come back to the outputs."""

    inputs: Inputs
    cotangents: tuple[Tensor, ...]

    def in_float64(self) -> Drawn:
        """The same numbers, each tensor once (keys that are also values stay one tensor)."""
        made: dict[int, Tensor] = {}
        return Drawn(
            {name: made.setdefault(id(tensor), _wide(tensor)) for name, tensor in self.inputs.items()},
            tuple(cotangent.double() for cotangent in self.cotangents),
        )

    def first_image(self) -> Drawn:
        """The same call with a batch of the first image alone."""
        made: dict[int, Tensor] = {}
        alone = {
            name: made.setdefault(id(x), x.detach()[:1].requires_grad_(x.requires_grad)) if name in PER_IMAGE else x
            for name, x in self.inputs.items()
        }
        return Drawn(alone, tuple(cotangent[:1] for cotangent in self.cotangents))


def _wide(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    wide, learns = tensor.detach().double(), tensor.requires_grad
    return nn.Parameter(wide, learns) if isinstance(tensor, nn.Parameter) else wide.requires_grad_(learns)


class Step:
    """`step(i)` computes on set i, round and round. Returns outputs, or outputs and then gradients in the order of `wanted`;
    for a backward alone only the gradients, from a forward pass that is kept."""

    def __init__(self, case: Case, forward: Forward, drawn: Sequence[Drawn], wanted: Sequence[str]) -> None:
        self.case, self.forward = case, forward
        self.inputs = [one.inputs for one in drawn]
        self.leaves = [[one.inputs[name] for name in wanted] for one in drawn]
        self.cotangents = [self._cast(one) for one in drawn]
        self.kept = [forward(inputs) for inputs in self.inputs] if case.backward_alone else []

    def __call__(self, index: int) -> tuple[Tensor, ...]:
        index %= len(self.inputs)
        if not self.case.backward:
            with torch.no_grad():
                return self.forward(self.inputs[index])
        if self.case.backward_alone:
            return torch.autograd.grad(self.kept[index], self.leaves[index], self.cotangents[index], retain_graph=True)
        outputs = self.forward(self.inputs[index])
        return (*outputs, *torch.autograd.grad(outputs, self.leaves[index], self.cotangents[index]))

    def _cast(self, one: Drawn) -> tuple[Tensor, ...]:
        """Cotangents in the dtypes that this provider returns."""
        if not self.case.backward:
            return ()
        with torch.no_grad():
            outputs = self.forward(one.inputs)
        return tuple(cotangent.to(output.dtype) for output, cotangent in zip(outputs, one.cotangents, strict=True))


def draw(case: Case, problem: Problem, device: str, *, count: int) -> list[Drawn]:
    """Fresh inputs and cotangents; a cotangent lies in memory as a projection behind the attention would hand it back."""
    return [_draw(case, problem, device, seed) for seed in range(count)]


def _draw(case: Case, problem: Problem, device: str, seed: int) -> Drawn:
    inputs = problem.inputs(case, device, seed)
    with torch.no_grad():
        shapes = [output.shape for output in problem.reference(case)(inputs)]
    generator = torch.Generator(device).manual_seed(1000 + seed)
    return Drawn(inputs, tuple(_cotangent(shape, case, device, generator) for shape in shapes))


def _cotangent(shape: torch.Size, case: Case, device: str, generator: torch.Generator) -> Tensor:
    by_row = len(shape) == 4
    sizes = [shape[0], shape[2], shape[1], shape[3]] if by_row else list(shape)
    drawn = torch.randn(sizes, generator=generator, device=device, dtype=case.torch_dtype)
    return drawn.transpose(1, 2) if by_row else drawn
