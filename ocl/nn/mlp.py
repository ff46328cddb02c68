"""Plain multi-layer perceptrons."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(in_dim: int, hidden_dim: int, out_dim: int, *, depth: int = 1) -> nn.Sequential:
    """Linear and ReLU in turn: `depth` hidden layers, no activation at the end. [..., in_dim] -> [..., out_dim].

    He initialisation before a ReLU and Glorot at the end, biases zero, as in Slot Attention and SLATE: torch's own default
    shrinks the signal at every layer, and slots then take several times as many steps to part.
    """
    widths = [in_dim, *[hidden_dim] * depth]
    layers: list[nn.Module] = []
    for width, next_width in pairwise(widths):
        layers += [he_(nn.Linear(width, next_width)), nn.ReLU()]
    return nn.Sequential(*layers, glorot_(nn.Linear(widths[-1], out_dim)))


def he_(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer, initialised to keep the variance through a ReLU (He et al. 2015)."""
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def glorot_(layer: nn.Linear) -> nn.Linear:
    """The layer, initialised to keep the variance without an activation (Glorot & Bengio 2010)."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
