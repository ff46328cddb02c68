"""Residual networks (He et al. 2016) with GroupNorm, trained from scratch, as SAVi uses them (Kipf et al. 2022, appendix)."""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor, nn

from ocl.errors import ConfigError
from ocl.interfaces import Encoder
from ocl.nn.normalise import SIGNED, Normalise
from ocl.nn.positions import CoordinateCode
from ocl.types import Features

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@final
class ResNet(Encoder):
    """A ResNet without max-pooling and without batch statistics, then a linear code of each cell's place.

    Args:
        depth: 18 and 34 have two 3 x 3 convolutions per block; 50 has bottlenecks and ends four times as wide.
        base_width: channels of the first stage (64 is published); every stage doubles them.
        stride: pixels per token along each side; the stem and the next stages halve the image until it is reached.
        position: add the code of the cell's place; without it tokens know only the image border.
    """

    def __init__(
        self, depth: Literal[18, 34, 50] = 18, *, base_width: int = 64, stride: Literal[4, 8, 16] = 8, position: bool = True
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS or stride not in (4, 8, 16):
            raise ConfigError(f"ResNet needs a depth of 18, 34 or 50 and a stride of 4, 8 or 16, got {depth} and {stride}.")
        expansion = 4 if depth == 50 else 1
        stages_with_step = {4: (1,), 8: (1, 2), 16: (1, 2, 3)}[stride]
        layers: list[nn.Module] = [nn.Conv2d(3, base_width, 7, stride=2, padding=3, bias=False), _norm(base_width), nn.ReLU()]
        channels = base_width
        for stage, num_blocks in enumerate(_BLOCKS[depth]):
            inner = base_width * 2**stage
            for index in range(num_blocks):
                step = 2 if stage in stages_with_step and index == 0 else 1
                layers.append(_Residual(channels, inner, inner * expansion, step))
                channels = inner * expansion
        self.width = channels
        self.normalise = Normalise(SIGNED, owner="ResNet")
        self.layers = nn.Sequential(*layers)
        self.position = CoordinateCode(self.width) if position else None

    def forward(self, image: Tensor) -> Features:
        """Image [B, 3, H, W] in [0, 1] -> one token per `stride` pixels (rounded up) along each side."""
        picture = self.layers(self.normalise(image).to(self.layers[0].weight.dtype))
        grid = (picture.shape[-2], picture.shape[-1])
        tokens = picture.flatten(2).transpose(1, 2)
        return Features(tokens if self.position is None else tokens + self.position(grid), grid)


@final
class _Residual(nn.Module):
    """relu(skip(x) + branch(x)); a bottleneck branch where `outer` differs from `inner`."""

    def __init__(self, channels: int, inner: int, outer: int, step: int) -> None:
        super().__init__()
        if outer == inner:
            self.branch = nn.Sequential(
                _conv(channels, inner, 3, step), _norm(inner), nn.ReLU(), _conv(inner, outer, 3, 1), _norm(outer)
            )
        else:
            self.branch = nn.Sequential(
                _conv(channels, inner, 1, 1), _norm(inner), nn.ReLU(),
                _conv(inner, inner, 3, step), _norm(inner), nn.ReLU(),
                _conv(inner, outer, 1, 1), _norm(outer),
            )  # fmt: skip
        same = channels == outer and step == 1
        self.skip = nn.Identity() if same else nn.Sequential(_conv(channels, outer, 1, step), _norm(outer))

    def forward(self, x: Tensor) -> Tensor:
        return (self.skip(x) + self.branch(x)).relu()


def _conv(channels: int, outer: int, kernel: int, step: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outer, kernel, stride=step, padding=kernel // 2, bias=False)


def _norm(channels: int) -> nn.GroupNorm:
    """32 groups, or fewer where a group would hold less than two channels and be empty of contrast on a 1 x 1 picture."""
    groups = max(min(32, channels // 2), 1)
    if channels % groups:
        raise ConfigError(f"ResNet normalises {groups} groups of channels, got base_width {channels}; use a power of 2.")
    return nn.GroupNorm(groups, channels)
