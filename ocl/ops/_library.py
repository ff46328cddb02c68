"""Which implementation of an operator runs: the compiled libraries that were found, and a switch that names one.

Every operator has a readable reference in PyTorch; compiled code only ever does the same thing faster.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ocl.errors import ConfigError

Backend = Literal["auto", "reference", "fused", "sdpa", "xformers"]
BACKENDS: tuple[str, ...] = get_args(Backend)

OPERATORS = torch.library.Library("ocl", "FRAGMENT")  # schemas and references come from Python, faster kernels from csrc
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HOW_TO_BUILD = "with a C++ compiler run: pip install --no-build-isolation -e ."

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


@dataclass(frozen=True)
class AttentionLibrary:
    """The compiled attention operators of one kind of device, or why there are none."""

    path: Path | None
    missing: str

    def call(self, name: str) -> Any:
        """A plain C function of the library, for questions that concern no tensor."""
        return getattr(ctypes.CDLL(str(self.path)), name)


@functools.cache
def attention_library(device: str) -> AttentionLibrary:
    """Load ocl/lib/attention_<device>.so once; a library that is absent or does not fit this torch is a reason, not an error."""
    if device not in ("cpu", "cuda"):
        return AttentionLibrary(None, f"there is no compiled implementation for {device} tensors")
    if device == "cuda" and torch.version.cuda is None:
        return AttentionLibrary(None, f"torch {torch.__version__} was built without CUDA")
    path = Path(__file__).resolve().parents[1] / "lib" / f"attention_{device}.so"  # no package: nothing imports it by mistake
    if not path.exists():
        how = HOW_TO_BUILD if device == "cpu" else f"with nvcc and {HOW_TO_BUILD.removeprefix('with ')}"
        return AttentionLibrary(None, f"ocl/lib/{path.name} is not built; {how}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return AttentionLibrary(None, f"ocl/lib/{path.name} does not load with torch {torch.__version__} ({error}); build it again")
    return AttentionLibrary(path, "")


def why_not_fused(operator: str, query: Tensor, sizes: tuple[int, ...]) -> str | None:
    """None where the compiled kernel takes these inputs; else the reason, as the second half of a sentence.

    sizes: what the kernel's width rules look at, in the order of the C function ocl_<operator>_cuda_supported.
    """
    if transforming():
        return "torch.func transforms run through the reference"
    kind = query.device.type
    missing = LIBRARIES[kind].missing if kind in LIBRARIES else attention_library(kind).missing
    if missing:
        return missing
    if query.dtype not in FUSED_DTYPES:
        return f"{query.dtype} runs through the reference (fused: float32, bfloat16, float16)"
    if kind == "cuda" and not _cuda_takes(operator, FUSED_DTYPES.index(query.dtype), *sizes):
        return f"no CUDA kernel was compiled for the sizes {sizes}"
    return None


def transforming() -> bool:
    """Inside torch.func.grad, vmap and the like, which know no operator of ours."""
    return torch._C._are_functorch_transforms_active()


def has_kernels(device: torch.device) -> bool:
    """Whether the dispatcher runs compiled attention operators on this device; if not, it runs their Python formulas."""
    return device.type in LIBRARIES and LIBRARIES[device.type].path is not None


@torch.compiler.assume_constant_result
@functools.cache
def _cuda_takes(operator: str, dtype: int, *sizes: int) -> bool:
    return bool(LIBRARIES["cuda"].call(f"ocl_{operator}_cuda_supported")(dtype, *(ctypes.c_int64(size) for size in sizes)))


def differentiable(operator: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Register the derivative of ocl::<operator> and return a callable for it.

    The derivative belongs to the dispatcher's operator, which compilers trace and anyone may call. The callable takes shorter ways
    in eager code: an autograd.Function around the kernels, which saves about 100 us per forward and backward, and the kernel
    itself where no derivative is wanted.
    """
    torch.library.register_autograd(f"ocl::{operator}", backward, setup_context=setup_context)
    kernel = getattr(torch.ops.ocl, operator).default

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = kernel(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            if torch.is_grad_enabled():  # create_graph=True: the backward operator says that it has no derivative
                return backward(ctx, *grads)
            with torch._C._AutoDispatchBelowAutograd():
                return backward(ctx, *grads)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return kernel(*inputs)
        if _derived(inputs):
            return Eager.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return kernel(*inputs)

    return call


def _derived(inputs: Iterable[Any]) -> bool:
    """Whether autograd looks at this call, backward or forward (Eager says that it has no forward derivative)."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs)


def refuse_second_derivative(operator: str) -> None:
    """Give `operator`, a backward, a derivative that says there is none."""

    def refuse(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise ConfigError(f'ocl::{operator} has no derivative of its own (create_graph=True); use ocl.ops.backend("reference").')

    torch.library.register_autograd(f"ocl::{operator}", refuse, setup_context=lambda ctx, inputs, output: None)


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


LIBRARIES = {device: attention_library(device) for device in ("cpu", "cuda")}  # loaded with ocl.ops, before anything is traced
