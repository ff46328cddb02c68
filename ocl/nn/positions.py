"""Codes that tell a token where it is. Coordinates: Locatello et al. 2020, appendix E.2 ("soft position embedding")."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def coordinates(grid: tuple[int, int], *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """(y, x, 1 - y, 1 - x) of every cell centre of the grid, row by row, in (0, 1): [h * w, 4]."""
    rows, columns = ((torch.arange(size, device=device, dtype=dtype) + 0.5) / size for size in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([y, x, 1 - y, 1 - x], dim=-1).flatten(0, 1)


@final
class CoordinateCode(nn.Module):
    """A linear map of the coordinates of a cell. forward(grid) -> [1, h * w, width]; any grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(4, width)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        weight = self.projection.weight
        return self.projection(coordinates(grid, device=weight.device, dtype=weight.dtype))[None]


@final
class LearnedCode(nn.Module):
    """One learned vector per cell of `grid`; other grids read it by bicubic interpolation. forward(grid) -> [1, h * w, width].

    std: of the initial vectors; None is width^-1/2 (DINOSAUR).
    """

    def __init__(self, width: int, grid: tuple[int, int], *, std: float | None = None) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.table = nn.Parameter(torch.randn(1, grid[0] * grid[1], width) * (width**-0.5 if std is None else std))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.table
        picture = self.table.float().transpose(1, 2).unflatten(-1, self.grid)  # half precision has no bicubic kernel on a CPU
        resized = F.interpolate(picture, size=grid, mode="bicubic", antialias=True)
        return resized.flatten(2).transpose(1, 2).to(self.table.dtype)
