"""Which implementation of an operator runs: the compiled libraries that were found, and a switch that names one.

Every operator has a readable reference in PyTorch; compiled code only ever does the same thing faster.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Literal, get_args

from ocl.errors import ConfigError

Backend = Literal["auto", "reference", "fused", "sdpa", "xformers"]
BACKENDS: tuple[str, ...] = get_args(Backend)

_active = {"name": "auto"}  # one value for the whole process, so that the threads of a backward pass see it too


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Inside the block every operator uses the named implementation, in all threads of the process.

    "auto" takes the fastest one at hand, "reference" the readable PyTorch, "fused" the compiled one. "sdpa" and "xformers"
    are other people's attention, for comparison; an operator without such an implementation chooses as under "auto".
    Raises ConfigError for an unknown name here, and for "fused" where an operator without a compiled library is called.
    """
    if name not in BACKENDS:
        raise ConfigError(f"ocl.ops.backend knows {', '.join(BACKENDS)}, got {name!r}.")
    before = _active["name"]
    _active["name"] = name
    try:
        yield
    finally:
        _active["name"] = before


def active_backend() -> str:
    """The name given to the innermost `backend`, or "auto"."""
    return _active["name"]


def choose_fused(operator: str, *, available: bool, missing: str) -> bool:
    """Whether `operator` runs its compiled implementation now; `missing` says why there is none and how to get it."""
    if active_backend() == "fused" and not available:
        raise ConfigError(f'{operator} was asked for backend "fused", but {missing}; or use backend("auto").')
    return available and active_backend() != "reference"


@functools.cache
def native() -> ModuleType | None:
    """The compiled module without tensors, ocl._native; None where it was not built."""
    try:
        return importlib.import_module("ocl._native")
    except ImportError:
        return None


def native_summary() -> str:
    """One line for people: what ocl._native was built with, or that it is not there and how to get it."""
    module = native()
    if module is None:
        return "not built (pure Python reference); with a C++ compiler: pip install --no-build-isolation -e ."
    info = module.build_info()
    return f"ocl._native {info['version']}, {info['compiler']}, {info['flags']}"
