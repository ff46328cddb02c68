"""AdamW over named parameters, and its state as tensors by parameter name, so that a checkpoint does not depend on an order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ocl.errors import CheckpointError, ConfigError
from ocl.nn.freezing import lies_in, parts_of
from ocl.train.options import Optimizer


def build(trained: Mapping[str, nn.Parameter], options: Optimizer) -> torch.optim.AdamW:
    """Parameters with fewer than two dimensions are not decayed unless `options.decay_vectors`; `set_rate` moves the rates.

    Raises ConfigError where `options.rates` names a part of which nothing is trained.
    """
    for part in options.rates:
        if not any(lies_in(name, part) for name in trained):
            known = parts_of(trained)
            raise ConfigError(f"training.optimizer.rates names {part}, of which nothing is trained; trained parts are {known}.")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in trained.items():
        named = max((part for part in options.rates if lies_in(name, part)), key=len, default="")
        decay = options.weight_decay if value.ndim >= 2 or options.decay_vectors else 0.0
        groups.setdefault((options.rates.get(named, 1.0), decay), []).append(value)
    used = [{"params": values, "weight_decay": decay, "rate": rate} for (rate, decay), values in groups.items()]
    made = torch.optim.AdamW(used, lr=options.lr, betas=options.betas, eps=options.eps)
    set_rate(made, options.lr)
    return made


def set_rate(optimizer: Any, lr: float) -> None:
    """Every group's learning rate: `lr` times the factor of its part. optimizer: torch's, or a wrapper that shows its groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]


def state(optimizer: torch.optim.AdamW, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """'<parameter name>.<moment>' -> tensor, for every parameter that was updated at least once."""
    return {
        f"{name}.{moment}": tensor
        for name, parameter in trained.items()
        for moment, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_state(optimizer: torch.optim.AdamW, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Take over what `state` returned; rates stay as they are. Raises CheckpointError, changing nothing, on a mismatch."""
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition(".")
        if name not in trained or (tensor.ndim > 0 and tensor.shape != trained[name].shape):
            way_out = "resume with the model, and the frozen parts, that it was written with"
            raise CheckpointError(f"optimizer state {key} {list(tensor.shape)} fits no trained parameter; {way_out}.")
        moments.setdefault(name, {})[moment] = tensor
    names = {id(parameter): name for name, parameter in trained.items()}
    ordered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    loaded = {index: moments[name] for index, name in enumerate(ordered) if name in moments}
    optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})
