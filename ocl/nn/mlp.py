"""Plain multi-layer perceptrons."""

from __future__ import annotations

from torch import nn


def mlp(in_dim: int, hidden_dim: int, out_dim: int, *, depth: int = 1) -> nn.Sequential:
    """Linear and ReLU in turn: `depth` hidden layers, no activation at the end. [..., in_dim] -> [..., out_dim]."""
    widths = [in_dim, *[hidden_dim] * depth]
    layers: list[nn.Module] = []
    for width, next_width in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], out_dim))
