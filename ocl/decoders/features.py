"""MLP decoder to encoder features (DINOSAUR: Seitzer et al. 2023, section 3.2 and appendix E)."""

from __future__ import annotations

from typing import final

from ocl.errors import ShapeError
from ocl.interfaces import Decoder
from ocl.nn.mlp import mlp
from ocl.nn.positions import LearnedCode
from ocl.types import Batch, Decoding, Features, Randomness, Slots


@final
class FeatureMLP(Decoder):
    """Each slot plus a learned place code is decoded at every token to a feature and an opacity, softmaxed over slots.

    The target is the encoder's own tokens, detached.

    Args:
        slot_dim: width of a slot.
        feature_dim: width of the encoder's tokens.
        grid: token grid (h, w) of the learned place code; other grids read it by interpolation.
        hidden_dim: width of the hidden layers.
        depth: number of hidden layers.
    """

    def __init__(
        self, slot_dim: int, feature_dim: int, *, grid: tuple[int, int] = (16, 16), hidden_dim: int = 2048, depth: int = 3
    ) -> None:
        super().__init__()
        self.slot_dim, self.feature_dim = slot_dim, feature_dim
        self.position = LearnedCode(slot_dim, grid)
        self.layers = mlp(slot_dim, hidden_dim, feature_dim + 1, depth=depth)

    def forward(self, slots: Slots, batch: Batch, features: Features, *, generator: Randomness = None) -> Decoding:
        """Slots of width slot_dim and tokens of width feature_dim -> prediction [B, N, D], masks [B, K, h, w]."""
        if features.width != self.feature_dim or slots.vectors.shape[-1] != self.slot_dim:
            raise ShapeError(
                f"FeatureMLP expects slots of width {self.slot_dim} and features of width {self.feature_dim}, "
                f"got {list(slots.vectors.shape)} and {list(features.tokens.shape)}; pass slot_dim and feature_dim to match."
            )
        cells = slots.vectors[:, :, None] + self.position(features.grid)[:, None]
        values, opacity = self.layers(cells).split([self.feature_dim, 1], dim=-1)
        masks = opacity.softmax(dim=1)
        return Decoding(
            prediction=(values * masks).sum(dim=1),
            target=features.tokens.detach(),
            masks=masks.squeeze(-1).unflatten(-1, features.grid),
        )
