"""ocl: object-centric learning from interchangeable parts. Importing it is light: no diffusers, transformers or deepspeed."""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_PACKAGES = frozenset({
    "data", "decoders", "encoders", "errors", "evaluate", "generate", "interfaces", "losses", "metrics", "models", "nn", "ops",
    "slots", "train", "types", "vis",
})  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    """`ocl.ops`, `ocl.models`, ... are imported when they are first used."""
    if name not in _PACKAGES:
        raise AttributeError(f"module 'ocl' has no attribute {name!r}; it has {', '.join(sorted(_PACKAGES))}.")
    return importlib.import_module(f"ocl.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES])
