"""The Python formulas of the attention operators in the place of compiled kernels."""

from collections import Counter
from importlib import import_module

import pytest
import torch


@pytest.fixture
def formulas():
    """The dispatcher's operators run their formulas on the CPU, in float64 too; yields how often each was called."""
    called = Counter()

    def counted(name, formula):
        def call(*inputs):
            called[name] += 1
            return formula(*inputs)

        return call

    library = torch.library.Library("ocl", "IMPL")
    for operator in ("register_attention", "slot_attention"):
        module = import_module(f"ocl.ops.{operator}")  # the name in ocl.ops is the function
        for direction in ("forward", "backward"):
            name = f"{operator}_{direction}"
            library.impl(name, counted(name, getattr(module, f"_{direction}")), "CPU", allow_override=True)
    yield called
    library._destroy()
