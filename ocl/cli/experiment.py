"""What an experiment is made of, read from YAML and the command line. The typed constructors of the parts are the schema.

A name in a config is only ever looked up inside `ocl`, or inside a package that the user named with `--import`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from ocl.cli.merge import lay_over
from ocl.data import Dataset, Scenes
from ocl.errors import ConfigError
from ocl.interfaces import Loss
from ocl.losses import Reconstruction
from ocl.models import SlotAutoencoder
from ocl.models.importers import ENCODER, SIZES
from ocl.models.names import checked, complete, instantiate, load_parts, structure
from ocl.nn.freezing import postponing
from ocl.train import EngineSetup, Local, Training

CONFIG = "config.yaml"
_FLAGS = ("--print_config", "--help")


@dataclass(frozen=True)
class Experiment:
    """A checked configuration. Parts are built on demand, so that reading a run does not ask for its training data.

    text: the resolved configuration as YAML.
    """

    config: Namespace
    text: str

    @property
    def training(self) -> Training:
        return self._build("training")

    def model(self, *, device: str = "cpu", postpone: bool = False) -> SlotAutoencoder:
        """The model; its weights follow from training.seed. On device "meta" no weight is read or made.

        postpone: read weights that are never trained when they are used for the first time.
        """
        torch.manual_seed(self.training.seed)
        with torch.device(device), postponing() if postpone else nullcontext():
            return self._build("model")

    def data(self) -> Dataset:
        return self._build("data")

    def held_out(self) -> Dataset | None:
        return self._build("held_out")

    def losses(self) -> list[Loss]:
        return self._build("losses")

    def engine(self) -> EngineSetup:
        return self._build("engine")

    def _build(self, name: str) -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{name}", type=PARTS[name])
        return instantiate(parser, Namespace(**{name: self.config.clone()[name]}))[name]


PARTS: Mapping[str, Any] = {
    "model": SlotAutoencoder,
    "data": Dataset,
    "held_out": Dataset | None,
    "losses": list[Loss],
    "training": Training,
    "engine": EngineSetup,
}


def experiment_parser(prog: str) -> ArgumentParser:
    """A parser whose options are the parts of an experiment; `--config`, `--print_config` and dotted overrides included."""
    parser = ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_argument("--config", action="config",
                        help="a YAML file, such as configs/slot_attention/scenes.yaml; further ones change what the first says")
    helps: Mapping[str, tuple[str, Any]] = {
        "model": ("a builder of ocl.models, or SlotAutoencoder", None),
        "data": ("what to train on", {"class_path": _path(Scenes)}),
        "held_out": ("what to score during training; null for nothing", None),
        "losses": ("their sum is minimised", [{"class_path": _path(Reconstruction)}]),
        "training": ("steps, batch, optimizer, precision, what is written when", Training()),
        "engine": ("Local, or DeepSpeed for several processes: where a run computes, not what", {"class_path": _path(Local)}),
    }
    for name, (text, default) in helps.items():
        parser.add_argument(f"--{name}", type=PARTS[name], default=default, required=name == "model", help=text)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str], *, packages: Sequence[str] = ()) -> Namespace:
    """Command line -> checked configuration; nothing is built. Raises ConfigError with the key at fault."""
    try:
        return parser.parse_args(list(_expand(argv, packages)))
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse has no common error class of its own
        raise ConfigError(f"{parser.prog}: {_one_message(error)}") from error


def read(argv: Sequence[str], *, prog: str, packages: Sequence[str] = ()) -> Experiment:
    """Command line -> experiment. Raises ConfigError at an unknown or ill-typed key, before any part is built."""
    parser = experiment_parser(prog)
    config = parse(parser, argv, packages=packages)
    experiment = Experiment(config, parser.dump(config.clone()))
    _ = experiment.training  # its values are checked when it is made
    return experiment


def read_run(run: Path, *, prog: str, packages: Sequence[str] = ()) -> Experiment:
    """The experiment that a run folder, or a checkpoint in it, was trained with."""
    path = run / CONFIG
    if not path.is_file():
        raise ConfigError(f"{path} is missing; pass a run folder that `ocl train` wrote.")
    if (run / ENCODER / SIZES).is_file():
        raise ConfigError(f"{run} is a published CODA checkpoint; run `ocl convert {run} FOLDER --weights PIPELINE`, pass FOLDER.")
    return read(["--config", str(path)], prog=prog, packages=packages)


def _expand(argv: Sequence[str], packages: Sequence[str]) -> Iterator[str]:
    """Read config files ourselves, so that names are checked before anything is imported, and complete builders' short names."""
    load_parts(packages)
    pairs = list(_pairs(argv))
    files = [value for key, value in pairs if key == "--config" and value is not None]
    for key, value in pairs:
        if value is None:
            yield key
            continue
        if key == "--config":
            if not files:
                continue  # it was merged into the first
            value, files = yaml.safe_dump(_merged(files, packages), sort_keys=False), []
        elif (parsed := structure(value)) is not None:
            value = yaml.safe_dump(checked(parsed, packages, key), default_flow_style=True)
        else:
            value = complete(key.removeprefix("--"), checked(value, packages, key))
        yield f"{key}={value}"


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(option, its value), with None for words that take none."""
    words = iter(argv)
    for word in words:
        key, separator, value = word.partition("=")
        if not key.startswith("--") or key in _FLAGS:
            yield word, None
        else:
            yield key, value if separator else next(words, "")


def _merged(files: Sequence[str], packages: Sequence[str]) -> Mapping[str, Any]:
    """One config from several files, of which each changes what those before it say."""
    merged: Mapping[str, Any] = {}
    for file in files:
        merged = lay_over(merged, checked(_read_yaml(Path(file)), packages, file), file)
    return merged


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os.strerror(error.errno or 0)}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {_one_message(error)}") from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ConfigError(f"{path} must hold keys and values, got {kind}; see configs/slot_attention/scenes.yaml.")
    return content


def _path(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def _one_message(error: BaseException) -> str:
    return " ".join(str(error).split())
