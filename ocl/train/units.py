"""What DeepSpeed sees of a model: the modules that hold trained weights, in one module whose forward is that of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn


@final
class Units(nn.Module):
    """Holds the trained parts of `model`; called, it runs `forward` inside `inside()` and returns the tensors of the output.

    DeepSpeed finds tensors in tuples only, so the output, a dataclass, is taken apart here and put together by `assemble`.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Any], inside: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.units = nn.ModuleList(trained_units(model))
        self._run = [forward]  # in a list, so that the frozen rest does not become a part of this module
        self._inside = inside
        self._output: Any = None

    def forward(self, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        with self._inside():
            self._output = self._run[0](*args, **options)
        return tuple(tensors_of(self._output))

    def assemble(self, tensors: tuple[Tensor, ...]) -> Any:
        """The last output, made of these tensors instead."""
        output, self._output = self._output, None
        return with_tensors(output, iter(tensors))


def trained_units(model: nn.Module) -> Iterator[nn.Module]:
    """The largest modules below `model` whose parameters are all trained, each once; together they hold every trained one."""
    for child in model.children():
        parameters = list(child.parameters())
        if parameters and all(parameter.requires_grad for parameter in parameters):
            yield child
        elif any(parameter.requires_grad for parameter in parameters):
            yield from trained_units(child)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a dataclass, and in the dataclasses in it, in the order of the fields."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same value with other tensors, in the order of `tensors_of`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: with_tensors(getattr(value, field.name), tensors) for field in fields(value)})
    return value


def hook_dataclasses(units: Units) -> None:
    """Let stage 3 see the tensors in dataclasses that modules return, so that it fetches their weights for the backward pass."""
    for module in units.modules():
        if module is not units:
            module.register_forward_hook(_fetch_before_backward)


def _fetch_before_backward(module: Any, inputs: Any, output: Any) -> Any:
    if not is_dataclass(output) or not torch.is_grad_enabled():
        return None
    return with_tensors(output, (module.pre_bwd_fn.apply(tensor) for tensor in tensors_of(output)))
