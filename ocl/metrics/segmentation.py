"""Segmentation scores of a whole data set, mergeable over batches and processes in any order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self, final

from torch import Tensor

from ocl.errors import ConfigError, ShapeError
from ocl.interfaces import Metric
from ocl.metrics.contingency import tabulate
from ocl.metrics.protocols import Protocol, Score, protocol_named
from ocl.metrics.scores import score_tables
from ocl.types import Batch

Level = Literal["instances", "classes"]
LEVELS = {"instances": "i", "classes": "c"}
PRINTED: dict[Score, str] = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO", "miou": "mIoU", "fg_miou": "FG-mIoU"}


@final
class Segmentation(Metric):
    """How well predicted segments cover the labelled regions, averaged over images.

    Names carry protocol and level: `FG-ARI[coda]`, `mBO_i[coda]`, `mIoU_i[coda]` (background counts as a region),
    `FG-mIoU_i[oclf]` (objects only); against classes `mBO_c`, `mIoU_c`, `FG-mIoU_c` and no Rand index. Values are fractions.
    Scores of every image are kept, and their sum is rounded once, so batches and processes may come in any order.

    Args:
        protocols: names from `ocl.metrics.PROTOCOLS`.
        level: whether segments are compared with `batch.instances` or with `batch.classes`.
        count_gaps: let `coda` and `slotdiffusion` count ids that no pixel carries as objects that nobody found, as their code
            does on MOVi; otherwise the regions of each image are numbered first, as their code does on photographs.
    """

    def __init__(self, protocols: tuple[str, ...] = ("coda",), level: Level = "instances", count_gaps: bool = False) -> None:
        if level not in LEVELS:
            raise ConfigError(f"Segmentation knows the levels {', '.join(LEVELS)}, got {level!r}.")
        if isinstance(protocols, str) or not protocols:
            raise ConfigError(f'Segmentation expects a list of protocols such as ("coda",), got {protocols!r}.')
        self.protocols = tuple(protocols)
        self.level: Level = level
        self.count_gaps = count_gaps
        self._chosen = [protocol_named(name) for name in dict.fromkeys(self.protocols)]
        self._scores: dict[str, list[float]] = {name: [] for protocol in self._chosen for _, name in self._columns(protocol)}
        self._objects: dict[str, list[int]] = {protocol.name: [] for protocol in self._chosen if protocol.average == "object"}

    def update(self, pred: Tensor, batch: Batch) -> None:
        """Count one batch. pred: integer labels >= 0 [B, H, W], of the size and on the device of the ground truth.

        Pixels whose true label is -1 are ignored in the way of each protocol. Raises ShapeError where the batch has no such
        ground truth or sizes differ, RangeError for other negative labels; nothing is counted then.
        """
        true = batch.instances if self.level == "instances" else batch.classes
        if true is None:
            raise ShapeError(f"Segmentation needs Batch.{self.level}, got None; use a dataset that has them or another level.")
        table = tabulate(pred, true, true == -1)
        table = table if self.count_gaps else table.without_gaps()
        for protocol, scored in zip(self._chosen, score_tables(table, self._chosen), strict=True):
            for score, name in self._columns(protocol):
                self._scores[name].extend(scored.values[score].tolist())
            if protocol.average == "object":
                self._objects[protocol.name].extend(scored.objects.tolist())

    def merge(self, other: Self) -> Self:
        """The metric over the images of both; neither is changed. ConfigError where they count different things."""
        if other._settings() != self._settings():
            raise ConfigError(f"Segmentation can merge only equal settings, got {self._settings()} and {other._settings()}.")
        both = Segmentation(self.protocols, self.level, self.count_gaps)
        for part in (self, other):
            for name, values in part._scores.items():
                both._scores[name].extend(values)
            for protocol, counts in part._objects.items():
                both._objects[protocol].extend(counts)
        return both

    def compute(self) -> dict[str, float]:
        """Name -> mean over the images that the protocol scores (over objects for `lsd`'s mBO and mIoU); NaN without any."""
        means = {}
        for protocol in self._chosen:
            for score, name in self._columns(protocol):
                values = self._scores[name]
                by_object = protocol.average == "object" and score in ("mbo", "fg_miou")
                weights: list[int] = self._objects[protocol.name] if by_object else [1] * len(values)
                means[name] = _weighted_mean(values, weights)
        return means

    def per_image(self) -> dict[str, list[float]]:
        """Name -> the score of every image in the order of the updates; NaN where an image is not scored."""
        return {name: list(values) for name, values in self._scores.items()}

    def state(self) -> dict[str, Any]:
        """Everything counted so far as plain lists, fit for JSON (NaN as null); `from_state` reads it."""
        scores = {name: [None if math.isnan(v) else v for v in values] for name, values in self._scores.items()}
        return {**self._settings(), "scores": scores, "objects": {name: list(counts) for name, counts in self._objects.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Segmentation:
        """The metric that `state()` described. Raises ConfigError where the lists do not belong to the settings."""
        metric = cls(tuple(state["protocols"]), state["level"], state["count_gaps"])
        lengths = {len(values) for part in ("scores", "objects") for values in state[part].values()}
        names_fit = set(state["scores"]) == set(metric._scores) and set(state["objects"]) == set(metric._objects)
        if not names_fit or len(lengths) > 1:
            raise ConfigError(
                f"Segmentation.from_state expects equally long lists {sorted(metric._scores)} and objects of "
                f"{sorted(metric._objects)}, got {sorted(state['scores'])} and {sorted(state['objects'])}."
            )
        for name, values in state["scores"].items():
            metric._scores[name] = [math.nan if v is None else float(v) for v in values]
        for name, counts in state["objects"].items():
            metric._objects[name] = [int(count) for count in counts]
        return metric

    def _settings(self) -> dict[str, Any]:
        return {"protocols": list(self.protocols), "level": self.level, "count_gaps": self.count_gaps}

    def _columns(self, protocol: Protocol) -> list[tuple[Score, str]]:
        """The scores of a protocol at this level and how they are printed."""
        rand = ("ari", "fg_ari")
        suffix = LEVELS[self.level]
        return [
            (score, f"{printed}[{protocol.name}]" if score in rand else f"{printed}_{suffix}[{protocol.name}]")
            for score, printed in PRINTED.items()
            if score in protocol.scores and not (score in rand and self.level == "classes")
        ]


def _weighted_mean(values: list[float], weights: list[int]) -> float:
    """Rounded once whatever the order; NaN values are left out, NaN without any other."""
    scored = [(value, weight) for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
    total = sum(weight for _, weight in scored)
    return math.fsum(value * weight for value, weight in scored) / total if total else math.nan
