"""`ocl bench ops`: how fast the operators are here, beside every other way to compute the same."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import ocl
from ocl.cli.options import add_device, device, no_overrides
from ocl.errors import ConfigError

EPILOG = """
A result is compared with float64 first, and no speed is reported for a wrong one. Times are medians of providers that take
turns in one process. A whole run keeps ops.json, ops.md and plots under benchmarks/results/<hardware>; options that choose
some of the rows replace those rows there; with --provider or --sizes nothing is kept unless --out names a folder. An unknown
name lists the known ones.
"""


def main(argv: Sequence[str]) -> int:
    options = argparse.ArgumentParser(
        prog="ocl bench", allow_abbrev=False, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure the operators: time, memory, error against float64, fraction of what the device can do.",
    )  # fmt: skip
    options.add_argument("what", choices=["ops"], help="which benchmark")
    options.add_argument("--quick", action="store_true", help="a few small shapes in under a minute; shown, not kept")
    options.add_argument("--op", nargs="+", metavar="NAME", help="register_attention, register_layer, slot_attention, slot_module")
    options.add_argument("--mode", nargs="+", metavar="NAME", help="forward, train, slots (registers frozen), maps, backward, ...")
    options.add_argument("--dtype", nargs="+", metavar="NAME", help="float32, bfloat16, float16")
    options.add_argument("--provider", nargs="+", metavar="NAME", help="eager, compile, sdpa, sdpa-math, flex, ours, ...")
    options.add_argument("--shape", nargs="+", default=[], metavar="WORD", help="rows of these sizes or this model: B=2 M=1024")
    options.add_argument("--sizes", nargs="+", default=[], metavar="NAME=N", help="your own, for one --op: B=2 H=8 M=99 D=64")
    options.add_argument("--threads", type=int, default=1, help="of the CPU; goals are for one")
    options.add_argument("--out", type=Path, help="folder to write; default benchmarks/results/<hardware>")
    options.add_argument("--missing", action="store_true", help="only rows that this commit has not measured yet")
    options.add_argument("--minutes", type=float, help="begin no further row after this time; --missing goes on with the rest")
    options.add_argument("--commit", help="name of the commit, where no git folder can tell it")
    add_device(options)
    known, words = options.parse_known_args(argv)
    no_overrides("ocl bench", words)
    command = benchmarks()
    wishes = command.Wishes(
        device=str(device(known.device)), quick=known.quick, ops=known.op, modes=known.mode, dtypes=known.dtype,
        providers=known.provider, shape=known.shape, sizes=known.sizes, threads=known.threads, out=known.out,
        missing=known.missing, minutes=known.minutes, commit=known.commit, command=shlex.join(["ocl", "bench", *argv]),
    )  # fmt: skip
    return int(command.run(wishes))


def benchmarks() -> ModuleType:
    """The benchmark's code, which lies beside the package in a checkout. Raises ConfigError where it does not."""
    checkout = Path(ocl.__file__).resolve().parents[1]
    if not (checkout / "benchmarks" / "ops").is_dir():
        raise ConfigError(
            f"ocl bench needs the folder benchmarks/ of the repository, and there is none in {checkout}; "
            "clone the repository and install it from there: pip install -e ."
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return importlib.import_module("benchmarks.ops.command")
