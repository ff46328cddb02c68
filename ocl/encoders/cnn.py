"""The small CNN of Slot Attention (Locatello et al. 2020, appendix E.2), trained from scratch on pixels."""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor, nn

from ocl.errors import ConfigError
from ocl.interfaces import Encoder
from ocl.nn.mlp import he_
from ocl.nn.normalise import SIGNED, Normalise
from ocl.nn.positions import CoordinateCode
from ocl.types import Features


@final
class CNN(Encoder):
    """Convolutions with ReLU, then a linear code of each cell's place.

    The LayerNorm and MLP that follow in the paper are `SlotAttention(input_mlp=True)`, as they are for every encoder.

    Args:
        width: channels of every layer, and width of the tokens.
        depth: number of convolutions.
        kernel: side of their kernels (odd).
        stride: pixels per token along each side; the first convolutions halve the image until it is reached. 1 is published.
        position: add the code of the cell's place; without it tokens know only the image border.
    """

    def __init__(
        self, width: int = 64, *, depth: int = 4, kernel: int = 5, stride: Literal[1, 2, 4, 8] = 1, position: bool = True
    ) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        if stride not in (1, 2, 4, 8) or halvings > depth:
            raise ConfigError(f"CNN needs a stride of 1, 2, 4 or 8 and a layer per halving, got {stride} and depth {depth}.")
        if kernel % 2 == 0:
            raise ConfigError(f"CNN needs an odd kernel, got {kernel}; use {kernel + 1}.")
        self.width = width
        self.normalise = Normalise(SIGNED, owner="CNN")
        layers: list[nn.Module] = []
        for index in range(depth):
            step = 2 if index < halvings else 1
            layers += [he_(nn.Conv2d(width if index else 3, width, kernel, stride=step, padding=kernel // 2)), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.position = CoordinateCode(width) if position else None

    def forward(self, image: Tensor) -> Features:
        """Image [B, 3, H, W] in [0, 1] -> one token per `stride` pixels (rounded up) along each side."""
        picture = self.layers(self.normalise(image).to(self.layers[0].weight.dtype))
        grid = (picture.shape[-2], picture.shape[-1])
        tokens = picture.flatten(2).transpose(1, 2)
        return Features(tokens if self.position is None else tokens + self.position(grid), grid)
