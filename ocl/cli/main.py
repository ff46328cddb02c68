"""The `ocl` command: one module per sub-command, imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ocl.errors import OCLError

COMMANDS = {
    "train": "train a model from a config into a run folder",
    "ablate": "train and score variants of a config, as one table",
    "cache": "compute once what frozen parts make of the training data",
    "plan": "say what a run costs and what fits, before it starts",
    "evaluate": "score a run under named protocols and write a report",
    "segment": "split a folder of photographs into slots",
    "reconstruct": "draw images again from their slots, all together or one by one",
    "compose": "draw scenes whose slots come from several images",
    "edit": "remove, replace, add or move an object by its slot",
    "pretrain": "make a small text-to-image pipeline of drawn scenes, for models to decode with",
    "export": "write a run's model in the layout of the hub, or of published CODA checkpoints",
    "convert": "make a folder that all commands read of a published CODA checkpoint",
    "describe": "show a config or run: parts, parameters, kernels",
    "data": "preview or check a dataset",
    "bench": "measure the operators beside every other way to compute the same",
    "demo": "train on drawn scenes, compare with trivial baselines, write a report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status (2: something in the input must change)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    name = words[0]
    if name == "--version":
        print(importlib.import_module("ocl").__version__)
        return 0
    if name not in COMMANDS:
        print(f"ocl: unknown command {name}; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"ocl.cli.{name}").main(words[1:])
    except OCLError as error:
        print(f"ocl {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"ocl {name}: {error}; free some space, or choose another folder.", file=sys.stderr)
        return 2


def _usage() -> str:
    rows = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    return f"usage: ocl COMMAND ...\n\n{rows}\n\n`ocl COMMAND --help` shows the options of a command."


if __name__ == "__main__":
    sys.exit(main())
