"""Whether a cache is of this data, these settings and these weights: asked before anything is loaded, as far as files can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ocl.data import Dataset
from ocl.data.cache import Cache
from ocl.errors import DataError
from ocl.models import SlotAutoencoder
from ocl.nn.fingerprint import differences
from ocl.train.precompute import PARTS, STATE, fingerprint, recipe_for, state_of, why_not


def check(cache: Cache, model: SlotAutoencoder, dataset: Dataset, data_config: Mapping[str, Any], *, flip: float) -> None:
    """Raises DataError, naming what differs, where a cache is not of this data, these settings and these weights.

    The model may be on the meta device, so that nothing is loaded for an answer; `check_state` tells the rest.
    """
    parts = tuple(name for name, has in (("features", cache.has_features), ("latents", cache.has_moments)) if has)
    trained = [why for name in parts if (why := why_not(model, name)) is not None]
    if trained:
        raise DataError(f"the cache {cache.folder} does not fit this model: {'; '.join(trained)}; pass --training.cache null.")
    recipe = recipe_for(model, parts, cache.layout.storage, mirrored=False)
    now = fingerprint(recipe, dataset, data_config)
    then = {name: value for name, value in cache.fingerprint.items() if name != STATE}
    _refuse(cache, differences(then, now))
    if flip > 0 and cache.layout.orientations < 2:
        raise DataError(
            f"training.flip is {flip}, but the cache {cache.folder} holds no mirrored images; "
            "write another one with this config, or pass --training.flip 0."
        )


def check_state(cache: Cache, model: SlotAutoencoder) -> None:
    """The same for tensors that lie in no file, such as those of an encoder of your own; the model must be real."""
    recipe = recipe_for(model, tuple(name for name in PARTS if name in cache.fingerprint), "fp32", mirrored=False)
    _refuse(cache, differences(cache.fingerprint[STATE], state_of(recipe)))


def _refuse(cache: Cache, changed: list[str]) -> None:
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise DataError(
            f"the cache {cache.folder} is stale ({'; '.join(changed[:3])}{more}): it was written with other data, settings or "
            "weights; write another one with `ocl cache`, or pass --training.cache null."
        )
