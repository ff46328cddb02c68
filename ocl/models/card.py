"""Model cards: the README.md of a model on the hub, with the front matter that the hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

_SCORE = re.compile(r"(?:(?P<masks>.+) )?(?P<metric>\S+\[\w+\])")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card says beyond what the model itself tells.

    name: of the model. scores: name with its protocol, such as "mBO_i[coda]" or "slot masks mBO_i[coda]" -> value. scored_on: the
    data that the scores are of. trained_on: the training data. license: of the weights; None leaves the line to be filled in.
    notes: more lines, such as the command and the hardware.
    """

    name: str = "Slot autoencoder"
    scores: Mapping[str, float] = field(default_factory=dict)
    scored_on: str = ""
    trained_on: str = ""
    license: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


def card_text(card: ModelCard, description: Mapping[str, Any]) -> str:
    """The whole README.md: YAML front matter between two lines of dashes, then Markdown.

    description: of the model, see `ocl.models.description`. Pretrained weights that it reads from the hub become `base_model`.
    """
    weights = list(dict.fromkeys(_weights(description)))
    tags = ["object-centric-learning", "slots", *sorted({_class(part) for part in description["init_args"].values()})]
    front: dict[str, Any] = {"library_name": "ocl", "pipeline_tag": "image-segmentation", "tags": tags}
    if base := [name for name in weights if re.fullmatch(r"[\w.-]+/[\w.-]+", name)]:
        front["base_model"] = base
    if card.scores:
        front["model-index"] = [{"name": card.name, "results": [_result(card)]}]
    license_line = f"license: {card.license}" if card.license else "# license: to be filled in, for instance apache-2.0"
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip()
    return f"---\n{license_line}\n{head}\n---\n\n" + "\n".join(_body(card, description, weights)) + "\n"


def _body(card: ModelCard, description: Mapping[str, Any], weights: list[str]) -> Iterator[str]:
    parts = ", ".join(f"{name} `{_class(part)}`" for name, part in description["init_args"].items())
    yield f"# {card.name}\n\nAn object-centric model of the library `ocl`: {parts}.\n"
    yield "    from ocl.models import SlotAutoencoder"
    yield '    model = SlotAutoencoder.from_pretrained("<this repository or folder>")\n'
    if weights:
        listed = ", ".join(f"`{name}`" for name in weights)
        yield f"`model.safetensors` holds what was trained; frozen weights are read from {listed}.\n"
    if card.trained_on:
        yield f"Trained on {card.trained_on}.\n"
    if card.scores:
        yield f"| score{f' on {card.scored_on}' if card.scored_on else ''} | value |\n| --- | ---: |"
        yield from (f"| {name} | {value:.4f} |" for name, value in card.scores.items())
        yield "\nThe name in brackets is the protocol: published numbers of one name are computed in different ways.\n"
    yield from (f"- {name}: {text}" for name, text in card.notes.items())


def _result(card: ModelCard) -> dict[str, Any]:
    data = card.scored_on or "not named"
    metrics = []
    for name, value in card.scores.items():
        found = _SCORE.fullmatch(name)
        kind = found["metric"].partition("[")[0] if found else name
        metrics.append({"type": kind, "name": name, "value": round(float(value), 6)})
    task = {"type": "image-segmentation", "name": "object discovery"}
    return {"task": task, "dataset": {"type": re.sub(r"\W+", "-", data.lower()).strip("-"), "name": data}, "metrics": metrics}


def _weights(value: Any) -> Iterator[str]:
    """Every argument called `weights` in a description."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from [item] if name == "weights" and isinstance(item, str) else _weights(item)
    elif isinstance(value, list):
        for item in value:
            yield from _weights(item)


def _class(part: Any) -> str:
    return str(part["class_path"]).rpartition(".")[2]
