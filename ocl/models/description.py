"""A model as plain values, and back: {class_path, init_args} for every part, which is what configs are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from ocl.errors import ConfigError
from ocl.models.autoencoder import SlotAutoencoder
from ocl.models.names import checked, instantiate, load_parts


def describe(model: SlotAutoencoder) -> dict[str, Any]:
    """The parts that the model has now, each with the arguments it was made with.

    Raises ConfigError for a part that cannot be made again from a config: one that was not made by its constructor, took an
    argument other than parts, numbers, texts and lists of them, or has a class that no module holds.
    """
    parts = {name: _value(getattr(model, name), name) for name in ("encoder", "init", "slot_module", "decoder")}
    return {"class_path": "ocl.models.SlotAutoencoder", "init_args": parts}


def build(description: Mapping[str, Any], *, packages: Sequence[str] = (), place: str = "the description") -> SlotAutoencoder:
    """The model that a description names; its frozen weights are read from where its parts say.

    Imports nothing beyond ocl and `packages`. Raises ConfigError, which begins with `place`, for a name outside of them and for
    unknown or ill-typed arguments; what the parts themselves raise where their weights are missing is passed on.
    """
    load_parts(packages)
    parser = ArgumentParser(prog=place, exit_on_error=False)
    parser.add_argument("--model", type=SlotAutoencoder)
    plain = checked(dict(description), packages, place)
    try:
        config = parser.parse_object({"model": plain})
    except Exception as error:  # jsonargparse has no common error class of its own
        raise ConfigError(f"{place}: {' '.join(str(error).split())}") from error
    model: SlotAutoencoder = instantiate(parser, config).model
    return model


def _value(value: Any, place: str) -> Any:
    if isinstance(value, nn.Module):
        return _part(value, place)
    if isinstance(value, (list, tuple)):
        return [_value(each, place) for each in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value).__name__
    raise ConfigError(f"{place} is a {kind}, which no config can name; pass parts, numbers, texts and lists of them.")


def _part(part: nn.Module, place: str) -> dict[str, Any]:
    kind = type(part)
    made_with = getattr(part, "made_with", None if "__init__" in vars(kind) else {})
    if made_with is None or "<" in kind.__qualname__ or kind.__module__ == "__main__":
        raise ConfigError(
            f"{place}: this {kind.__qualname__} cannot be made again from a config; it must come from its constructor, and its "
            "class from a module that can be imported."
        )
    arguments = {name: _value(value, f"{place}.{name}") for name, value in made_with.items()}
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
