"""Every class of the package keeps the rules of design.md: abstract or final, an example, a constructor that is its schema."""

import inspect

import jsonargparse
import pytest
from torch import nn

from ocl import interfaces

INTERFACES = tuple(value for value in vars(interfaces).values() if inspect.isclass(value) and inspect.isabstract(value))


@pytest.fixture
def parts(ocl_classes):
    return [value for value in ocl_classes if issubclass(value, INTERFACES) and not inspect.isabstract(value)]


def test_every_part_has_an_example(parts, example_names):
    torch_parts = {part.__name__ for part in parts if issubclass(part, nn.Module)}
    assert torch_parts - example_names == set(), "add one line for each to EXAMPLES in tests/contracts/conftest.py"


def test_every_example_is_of_a_part_that_exists(parts, example_names):
    assert example_names - {part.__name__ for part in parts} == set()


def test_every_part_has_its_own_name(parts):
    """Configurations name parts by class name alone."""
    names = [part.__name__ for part in parts]
    assert sorted(names) == sorted(set(names))


def test_modules_and_parts_are_abstract_or_final(ocl_classes):
    open_ended = [
        value.__name__
        for value in ocl_classes
        if issubclass(value, (nn.Module, *INTERFACES)) and not inspect.isabstract(value) and "__final__" not in vars(value)
    ]
    assert open_ended == [], "decorate them with typing.final"


def test_only_abstract_classes_and_errors_are_extended(ocl_classes):
    extended = {base for value in ocl_classes for base in value.__bases__ if base.__module__.startswith("ocl.")}
    assert [base for base in extended if not inspect.isabstract(base) and not issubclass(base, Exception)] == []


def test_every_part_is_built_by_its_short_name(parts):
    """The way of configs and the command line; every required argument here is a width, a count, a name or an encoder."""
    for part in parts:
        kind = next(kind for kind in INTERFACES if issubclass(part, kind))
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--part", type=kind)
        required = [parameter.name for parameter in arguments(part) if parameter.default is parameter.empty]
        words = [f"--part={part.__name__}", *(f"--part.{name}={'CNN' if name == 'encoder' else 8}" for name in required)]
        assert parser.parse_args(words).part.class_path.endswith(f".{part.__name__}")
        with pytest.raises(jsonargparse.ArgumentError, match="stranger"):
            parser.parse_args([*words, "--part.stranger=1"])


def arguments(part):
    return list(inspect.signature(part.__init__).parameters.values())[1:]


def test_constructors_are_typed_and_explain_every_argument(parts):
    """jsonargparse makes the command line and its help from them."""
    unexplained = []
    for part in parts:
        for parameter in arguments(part):
            plain = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            explained = f"        {parameter.name}: " in (part.__doc__ or "")
            if not (plain and explained and parameter.annotation is not parameter.empty):
                unexplained.append(f"{part.__name__}.{parameter.name}")
    assert unexplained == []
