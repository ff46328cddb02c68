"""Names of classes in configs: only those of ocl, or of packages that the user named, are ever looked up or imported."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

import ocl.models
from ocl.errors import ConfigError, OCLError
from ocl.models.autoencoder import SlotAutoencoder

set_parsing_settings(subclasses_enabled=[SlotAutoencoder])  # it is final, but its builders stand for it in a config
_DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_PARTS = ("ocl.data", "ocl.decoders", "ocl.encoders", "ocl.losses", "ocl.models", "ocl.slots")


def load_parts(packages: Sequence[str]) -> None:
    """Import our parts, and the user's packages, so that configs can name their classes without a path."""
    for name in _PARTS:
        importlib.import_module(name)
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"package {name}: {error}; put the package's parent folder on PYTHONPATH.") from error


def checked(value: Any, packages: Sequence[str], place: str) -> Any:
    """The same values, builders' short names completed. Raises ConfigError at a string that could name foreign code."""
    if isinstance(value, Mapping):
        return {
            key: complete(key, checked(item, packages, f"{place}: {key}")) for key, item in value.items()
        }
    if isinstance(value, list):
        return [checked(item, packages, place) for item in value]
    if isinstance(value, str):
        checked(structure(value), packages, place)  # a part may be written as YAML inside a string
        package = value.partition(".")[0]
        if _DOTTED_NAME.fullmatch(value) and package not in {"ocl", *(name.partition(".")[0] for name in packages)}:
            raise ConfigError(
                f"{place}: {value} is not part of ocl; if you trust that package, pass --import {package} (in Python "
                f"packages=[{package!r}]); if it is a file, write ./{value}."
            )
    return value


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """What a checked config names. An error of ours that jsonargparse wrapped, inside an optional part, is raised as it was."""
    try:
        return parser.instantiate(config)
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None and not isinstance(inner, OCLError):
            inner = inner.__cause__
        raise inner or error from None


def structure(text: str) -> Mapping[str, Any] | list[Any] | None:
    """The mapping or list that a string holds as YAML; None for any other string."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return value if isinstance(value, (Mapping, list)) else None


def complete(key: str, value: Any) -> Any:
    """A builder's short name -> its path; classes need none, jsonargparse finds them by name."""
    named = key in ("class_path", "model") and isinstance(value, str) and value in ocl.models.__all__
    return f"ocl.models.{value}" if named else value
