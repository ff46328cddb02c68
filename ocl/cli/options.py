"""Options that several commands share, and how words are handed to the parser of an experiment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ocl.errors import ConfigError


def command(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for the options of one command; words it does not know may be overrides of a config."""
    parser = argparse.ArgumentParser(prog=f"ocl {name}", description=description, allow_abbrev=False)
    parser.add_argument("--import", dest="packages", action="append", default=[], metavar="PACKAGE",
                        help="allow a config to name classes of this package")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")


def device(name: str) -> torch.device:
    """The named device. Raises ConfigError where torch cannot use it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); use --device cpu.") from error
    return found


def results(run: Path, name: str) -> Path:
    """Where a command writes by default: RUN/name, and for a checkpoint, which is removed one day, RUN/name/step-..."""
    inside = run.parent.name == "checkpoints"
    return run.parent.parent / name / run.name if inside else run / name


def no_overrides(prog: str, words: Sequence[str]) -> None:
    """Raises ConfigError where words are left over."""
    if words:
        raise ConfigError(f"{prog}: unknown {' '.join(words)}; see {prog} --help.")


def existing(path: Path, what: str) -> Path:
    """The path. Raises ConfigError where nothing is there."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist; pass {what}.")
    return path
