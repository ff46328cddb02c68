"""Weights that are used and never changed, and the rule for checkpoints: what is frozen is not saved.

Frozen weights are published ones, so a model is restored by building it from its config, which loads them again, and then
filling in everything else. Both directions are strict: no tensor may be missing, unknown or of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from ocl.errors import CheckpointError

Files = Callable[[], Sequence[Path]]
"""Where published weights lie on this machine; may download them first."""

_postponed: ContextVar[bool] = ContextVar("postponed", default=False)
_restored: ContextVar[bool] = ContextVar("restored", default=False)


@contextmanager
def _raised(flag: ContextVar[bool]) -> Iterator[None]:
    token = flag.set(True)
    try:
        yield
    finally:
        flag.reset(token)


def postponing() -> AbstractContextManager[None]:
    """Parts made inside read the weights that they never train when these are used for the first time, or not at all."""
    return _raised(_postponed)


def is_postponing() -> bool:
    """Whether we are inside `postponing`."""
    return _postponed.get()


def restoring() -> AbstractContextManager[None]:
    """Parts made inside leave out what is computed once and lies in every checkpoint; one must be loaded before they are used.

    Such a part says in `awaits` what it waits for: the name of each tensor and its shape, None for a side of any length.
    """
    return _raised(_restored)


def is_restoring() -> bool:
    """Whether we are inside `restoring`."""
    return _restored.get()


def awaited(module: nn.Module) -> dict[str, tuple[int | None, ...]]:
    """Names and shapes of the tensors that parts made inside `restoring` still wait for."""
    return {
        f"{path}.{name}".lstrip("."): shape for path, part in module.named_modules(remove_duplicate=False)
        for name, shape in getattr(part, "awaits", {}).items()
    }  # fmt: skip


@final
class Frozen(nn.Module):
    """Holds `module` in eval mode for good and its parameters without gradient. Call `frozen.module(...)`.

    Gradients still flow through it to its inputs; where they are not wanted the caller adds `torch.no_grad()`. A parameter
    inside that is given `requires_grad` again is trained and saved; everything else inside, buffers too, is not saved.
    `module` may be a function that reads it: it is called when `frozen.module` is asked for, and the result is brought to
    where the model was moved meanwhile. files: where the weights came from, or None for weights that lie in no file.
    """

    def __init__(self, module: nn.Module | Callable[[], nn.Module], *, files: Files | None = None) -> None:
        super().__init__()
        self.files = files
        self._read: Callable[[], nn.Module] | None = None if isinstance(module, nn.Module) else module
        self._moves: list[Callable[[Tensor], Tensor]] = []
        if isinstance(module, nn.Module):
            self.module = module.requires_grad_(False).eval()

    @property
    def is_read(self) -> bool:
        return self._read is None

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def __getattr__(self, name: str) -> Any:
        read = self.__dict__.get("_read")
        if name != "module" or read is None:
            return super().__getattr__(name)
        # Whoever asks first may evaluate: tensors made in inference mode could never be trained through.
        with torch.inference_mode(False):
            module = read().requires_grad_(False).eval()
            for move in self._moves:
                module._apply(move)
        self._read, self._moves = None, []
        self.module = module
        return module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not self.is_read:
            self._moves.append(fn)
            return self
        return super()._apply(fn, recurse)


def trainable_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict (same names, same storage, detached) without what lies inside a `Frozen` and is not trained."""
    frozen = set(_frozen_names(module))
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def load_trainable_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into exactly the tensors that `trainable_state_dict` returns, and those that are `awaited`.

    Raises CheckpointError, and changes nothing, where a tensor is missing, unknown or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in trainable_state_dict(module).items()} | awaited(module)
    problems = {
        "missing": expected.keys() - state.keys(),
        "unknown": state.keys() - expected.keys(),
        "of another shape": {name for name in expected.keys() & state.keys() if not _fits(expected[name], state[name])},
    }
    found = [f"{len(names)} {problem} ({_listed(names)})" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"weights do not fit {type(module).__name__}: {'; '.join(found)}; "
            "build the model with the config that the weights came with."
        )
    module.load_state_dict(dict(state), strict=False)


def lies_in(name: str, part: str) -> bool:
    """Whether a parameter is called `part` or lies below it: slot_module.to_q.weight lies in slot_module and slot_module.to_q."""
    return name == part or name.startswith(f"{part}.")


def parts_of(names: Iterable[str]) -> str:
    """The first words of parameters' names, for messages: encoder, slot_module."""
    return ", ".join(sorted({name.partition(".")[0] for name in names}))


def _frozen_names(module: nn.Module) -> Iterator[str]:
    for path, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, Frozen):
            trained = {name for name, parameter in part.named_parameters(remove_duplicate=False) if parameter.requires_grad}
            prefix = f"{path}." if path else ""
            yield from (prefix + name for name in part.state_dict() if name not in trained)


def _fits(shape: tuple[int | None, ...], value: Tensor) -> bool:
    return len(shape) == value.ndim and all(side in (None, found) for side, found in zip(shape, value.shape, strict=True))


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
