"""Generators that can be made from nothing: `pretrain` writes a text-to-image pipeline of drawn scenes."""

from ocl.pretrain.parts import Sizes
from ocl.pretrain.recipe import Recipe, pretrain

__all__ = ["Recipe", "Sizes", "pretrain"]
