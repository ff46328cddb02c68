"""AdamW over named parameters, and its state as tensors by parameter name, so that a checkpoint does not depend on an order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ocl.errors import CheckpointError
from ocl.train.options import Optimizer


def build(trained: Mapping[str, nn.Parameter], options: Optimizer) -> torch.optim.AdamW:
    """Parameters with fewer than two dimensions are not decayed unless `options.decay_vectors`."""
    decayed = [value for value in trained.values() if value.ndim >= 2 or options.decay_vectors]
    others = [value for value in trained.values() if value.ndim < 2 and not options.decay_vectors]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=options.lr, betas=options.betas, eps=options.eps)


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
