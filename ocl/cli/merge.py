"""Config files laid over one another, key by key, so that a small file can say what one variant of an experiment changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ocl.errors import ConfigError


def lay_over(below: Any, above: Any, place: str) -> Any:
    """`below` with what `above` says: mappings are joined key by key, anything else is replaced.

    Another class_path starts the part anew: arguments of the former class are dropped. A mapping laid over a list of parts
    changes those that it names by their class, and removes those that it sets to null: `losses: {MaskEntropy: {weight: 0.1}}`.
    place: of `above`, for the message where a named part is not in the list (ConfigError).
    """
    if isinstance(below, list) and isinstance(above, Mapping):
        return _changed_parts(below, above, place)
    if isinstance(below, str) and isinstance(above, Mapping) and "class_path" not in above:
        below = {"class_path": below}
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)) or _other_class(below, above):
        return above
    joined = {key: lay_over(below[key], value, f"{place}: {key}") if key in below else value for key, value in above.items()}
    return {**below, **joined}


def _changed_parts(parts: Sequence[Any], changes: Mapping[str, Any], place: str) -> list[Any]:
    found: list[Any] = list(parts)
    for name, change in changes.items():
        numbers = [number for number, part in enumerate(found) if _class_name(part) == name]
        if len(numbers) != 1:
            having = ", ".join(map(_class_name, parts)) or "nothing"
            raise ConfigError(f"{place}: {name} names {len(numbers)} parts of a list that holds {having}; name one of them.")
        (number,) = numbers
        found[number : number + 1] = [] if change is None else [lay_over(found[number], {"init_args": change}, f"{place}: {name}")]
    return found


def _other_class(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    return "class_path" in above and _class_name(above) != _class_name(below)


def _class_name(part: Any) -> str:
    """{class_path: ocl.losses.Reconstruction} or the bare path -> Reconstruction."""
    path = part.get("class_path") if isinstance(part, Mapping) else part
    return str(path).rpartition(".")[2]
