"""What is measured: which operator, at which sizes, in which dtype, with which gradients.

Sizes B batch, H heads, M queries, D head width, K slots, R registers, N tokens. The CPU lists are small batches of the same
layers: cross-attention of SD1.5 at 512 and 256 px and of SDXL, and slot attention on ViT, CNN and pixel-like grids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ocl.errors import ConfigError

SIZES: dict[str, tuple[str, ...]] = {
    "register_attention": ("B", "H", "M", "D", "K", "R"),
    "register_layer": ("B", "H", "M", "D", "K", "R", "C"),
    "slot_attention": ("B", "H", "N", "D", "K"),
    "slot_module": ("B", "N", "D", "K"),
}
DEFAULT_SIZES = {"H": 1, "K": 7, "R": 77, "C": 768}
MODES: dict[str, tuple[str, ...]] = {
    "register_attention": ("forward", "train", "slots", "maps", "backward", "backward-slots"),
    "register_layer": ("forward",),
    "slot_attention": ("forward", "train", "maps"),
    "slot_module": ("forward", "train"),
}
BOTH = ("forward", "train")
MODE_TEXT = {
    "forward": "forward",
    "train": "forward and backward, all gradients",
    "slots": "forward and backward, registers frozen",
    "maps": "output and maps, forward and backward",
    "backward": "backward alone, all gradients",
    "backward-slots": "backward alone, registers frozen",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

REGISTER_CPU = ((2, 8, 4096, 40), (2, 8, 1024, 80), (2, 8, 256, 160), (2, 8, 64, 160), (4, 8, 1024, 40), (2, 10, 1024, 64))
LAYER_CPU = ((4, 8, 1024, 40), (4, 8, 1024, 80), (4, 8, 256, 160), (4, 8, 64, 160))  # B, H, M, D
REGISTER_GPU = {  # model -> H, M, D
    "SD1.5 L0": (8, 4096, 40), "SD1.5 L1": (8, 1024, 80), "SD1.5 L2": (8, 256, 160), "SD1.5 mid": (8, 64, 160),
    "SDXL L1": (10, 4096, 64), "SDXL L2": (20, 1024, 64), "PixArt": (16, 1024, 72), "SD3-like": (24, 4096, 64),
}  # fmt: skip
SLOTS_CPU = ((4, 1024, 768, 7), (4, 256, 256, 7), (4, 784, 768, 24), (8, 4096, 64, 7), (4, 1024, 256, 11))  # B, N, D, K
MODULE_CPU = SLOTS_CPU[:4]
SLOTS_GPU = ((1024, 768, 7), (256, 768, 7), (784, 768, 24), (1024, 768, 24), (4096, 64, 11), (1024, 256, 11), (256, 256, 7))


@dataclass(frozen=True)
class Case:
    """One row of the results. `mask`: some images have all slots left out; `shared`: keys and values are one tensor."""

    op: str
    mode: str
    dtype: str
    sizes: Mapping[str, int]
    mask: bool = False
    shared: bool = False
    model: str = ""

    def __getitem__(self, size: str) -> int:
        return self.sizes[size]

    @property
    def shape(self) -> str:
        """The sizes that differ from row to row; K, R and C where they are unusual."""
        usual = {"K": 7, "R": 77, "C": 768}
        names = [name for name, size in self.sizes.items() if usual.get(name) != size and not (name == "H" and "N" in self.sizes)]
        return " ".join(f"{name}{self.sizes[name]}" for name in names)

    @property
    def key(self) -> str:
        """What a row is found by when a later run measures it again."""
        sizes = " ".join(f"{name}={size}" for name, size in self.sizes.items())
        return " ".join(filter(None, [self.op, self.mode, self.dtype, "mask" * self.mask, "shared" * self.shared, sizes]))

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def backward(self) -> bool:
        return self.mode != "forward"

    @property
    def backward_alone(self) -> bool:
        return self.mode.startswith("backward")

    @property
    def registers_learn(self) -> bool:
        return self.mode in ("train", "maps", "backward")

    def as_row(self) -> dict[str, Any]:
        return {"key": self.key, "op": self.op, "mode": self.mode, "dtype": self.dtype, "mask": self.mask, "shared": self.shared,
                "model": self.model, "sizes": dict(self.sizes), "shape": self.shape}


def listed(kind: str, *, quick: bool = False) -> list[Case]:
    """Every case of a device kind, "cpu" or "cuda", the most telling first."""
    return list(_quick(kind) if quick else _cpu() if kind == "cpu" else _gpu())


def every_model() -> list[Case]:
    """The GPU's layers at its batches, in float32, for who has the time on a CPU."""
    return [
        case for batch in (1, 2, 8, 32) for model, sizes in REGISTER_GPU.items()
        for case in _each("register_attention", BOTH, "float32", _register(batch, *sizes), model=model)
    ]  # fmt: skip


def custom(op: str, words: Sequence[str], *, dtypes: Sequence[str] | None, modes: Sequence[str] | None) -> list[Case]:
    """Cases at sizes that somebody asked for, `["B=1", "H=2", ...]`; K, R, C and H have defaults."""
    given, needed = _sizes(words), SIZES[op]
    sizes = {**DEFAULT_SIZES, **given}
    if missing := [name for name in needed if name not in sizes]:
        raise ConfigError(f"ocl bench: --sizes of {op} are {' '.join(needed)}, {' '.join(missing)} missing; add {missing[0]}=8.")
    if unknown := sorted(set(given) - set(needed)):
        raise ConfigError(f"ocl bench: --sizes of {op} are {' '.join(needed)}, got {' '.join(unknown)} too; leave that out.")
    chosen = {name: sizes[name] for name in needed}
    usual = [mode for mode in MODES[op] if not mode.startswith("backward")]
    return [Case(op, mode, dtype, chosen) for dtype in dtypes or ["float32"] for mode in modes or usual if mode in MODES[op]]


@dataclass(frozen=True)
class Choice:
    """What rows must be; None allows all. `shape`: words NAME=SIZE, or the start of a model's name."""

    ops: Sequence[str] | None = None
    modes: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    shape: Sequence[str] = ()

    def allows(self, case: Case) -> bool:
        named = ((self.ops, case.op), (self.modes, case.mode), (self.dtypes, case.dtype))
        sizes = _sizes([word for word in self.shape if "=" in word])
        models = [word.lower() for word in self.shape if "=" not in word]
        return (
            all(not names or name in names for names, name in named)
            and all(case.sizes.get(name) == size for name, size in sizes.items())
            and all(case.model.lower().startswith(model) for model in models)
        )


def select(cases: Sequence[Case], choice: Choice) -> list[Case]:
    """The cases that the choice allows. Raises ConfigError where none is left."""
    chosen = [case for case in cases if choice.allows(case)]
    if not chosen:
        known = sorted({f"{case.model} {case.shape}".strip() for case in cases if not choice.ops or case.op in choice.ops})
        raise ConfigError(
            "ocl bench: no listed case fits these options together; leave one out, or give your own sizes with --sizes. "
            f"Listed shapes: {'; '.join(known)}."
        )
    return chosen


def _sizes(words: Sequence[str]) -> dict[str, int]:
    found = {}
    for word in words:
        name, _, size = word.partition("=")
        if name not in {name for names in SIZES.values() for name in names} or not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"ocl bench: sizes are written NAME=NUMBER with a name of B H M N D K R C, got {word!r}; e.g. B=2.")
        found[name] = int(size)
    return found


def _each(op: str, modes: Sequence[str], dtype: str, sizes: Mapping[str, int], **more: Any) -> Iterator[Case]:
    return (Case(op, mode, dtype, sizes, **more) for mode in modes)


def _register(B: int, H: int, M: int, D: int) -> dict[str, int]:
    return {"B": B, "H": H, "M": M, "D": D, "K": 7, "R": 77}


def _layer(B: int, H: int, M: int, D: int) -> dict[str, int]:
    return {**_register(B, H, M, D), "C": 768}


def _slots(B: int, N: int, D: int, K: int) -> dict[str, int]:
    return {"B": B, "H": 1, "N": N, "D": D, "K": K}


def _module(B: int, N: int, D: int, K: int) -> dict[str, int]:
    return {"B": B, "N": N, "D": D, "K": K}


def _cpu() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        for mode in ("forward", "train", "slots", "maps"):
            yield from (Case("register_attention", mode, dtype, _register(*sizes)) for sizes in REGISTER_CPU)
        yield from (Case("register_layer", "forward", dtype, _layer(*sizes), mask=True) for sizes in LAYER_CPU)
        for mode in BOTH:
            yield from (Case("register_attention", mode, dtype, _register(*sizes), mask=True) for sizes in REGISTER_CPU)
    for mode in BOTH:
        yield from (Case("slot_module", mode, "float32", _module(*sizes)) for sizes in MODULE_CPU)
        for shared in (False, True):
            yield from (Case("slot_attention", mode, "float32", _slots(*sizes), shared=shared) for sizes in SLOTS_CPU)
    yield from (Case("slot_attention", "maps", "float32", _slots(*sizes)) for sizes in SLOTS_CPU)
    for mode in BOTH:
        yield from (Case("slot_attention", mode, "bfloat16", _slots(*sizes), shared=True) for sizes in SLOTS_CPU)


def _gpu() -> Iterator[Case]:
    for batch in (32, 8, 1, 2):
        for model, (H, M, D) in REGISTER_GPU.items():
            sizes = _register(batch, H, M, D)
            yield from _each("register_attention", MODES["register_attention"], "bfloat16", sizes, model=model)
            yield from _each("register_attention", BOTH, "bfloat16", sizes, model=model, mask=True)
    for batch in (32, 8, 64):
        for N, D, K in SLOTS_GPU:
            for shared in (False, True):
                yield from _each("slot_attention", BOTH, "bfloat16", _slots(batch, N, D, K), shared=shared)
    for N, D, K in SLOTS_GPU:
        yield from _each("slot_module", BOTH, "bfloat16", _module(32, N, D, K))
    for model, (H, M, D) in REGISTER_GPU.items():
        if model.startswith("SD1.5"):
            for batch in (8, 32):
                yield Case("register_layer", "forward", "bfloat16", _layer(batch, H, M, D), mask=True, model=model)
            for dtype in ("float32", "float16"):
                yield from _each("register_attention", BOTH, dtype, _register(8, H, M, D), model=model)
    for N, D, K in SLOTS_GPU[:4]:
        yield from _each("slot_attention", BOTH, "float32", _slots(8, N, D, K))


def _quick(kind: str) -> Iterator[Case]:
    if kind == "cpu":
        small, smallest, step = _register(2, 8, 256, 160), _register(2, 8, 64, 160), _slots(4, 256, 256, 7)
        yield from _each("register_attention", ("forward", "train", "slots", "maps"), "float32", small)
        yield from _each("register_attention", BOTH, "bfloat16", smallest)
        yield Case("register_attention", "forward", "float32", small, mask=True)
        yield Case("register_layer", "forward", "float32", _layer(4, 8, 64, 160), mask=True)
        yield from _each("slot_attention", BOTH, "float32", step)
        yield Case("slot_attention", "train", "float32", step, shared=True)
        yield Case("slot_module", "train", "float32", _module(4, 256, 256, 7))
        return
    large = _register(8, 8, 4096, 40)
    yield from _each("register_attention", MODES["register_attention"], "bfloat16", large, model="SD1.5 L0")
    yield Case("register_attention", "forward", "bfloat16", large, mask=True, model="SD1.5 L0")
    yield from _each("register_attention", BOTH, "bfloat16", _register(1, 8, 64, 160), model="SD1.5 mid")
    yield from _each("slot_attention", BOTH, "bfloat16", _slots(32, 1024, 768, 7))
    yield Case("slot_module", "train", "bfloat16", _module(32, 1024, 768, 7))
