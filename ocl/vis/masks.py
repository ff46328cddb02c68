"""Soft masks as labels, overlays and cut-outs. Published scores upsample masks bilinearly and take the argmax after that."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ocl.errors import ShapeError
from ocl.vis.colours import slot_colours


def hard_labels(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Soft masks [B, K, h, w] -> the slot that owns each pixel, int64 [B, H, W]: upsampled to `size`, then argmax.

    Ties go to the lower slot. Slots are upsampled one at a time, so a large photograph needs the memory of two masks, not of K.
    """
    if masks.ndim != 4 or masks.shape[1] == 0:
        raise ShapeError(f"hard_labels expects masks [B, K, h, w] with K > 0, got {list(masks.shape)}.")
    highest = upsample(masks[:, :1], size)
    labels = torch.zeros_like(highest, dtype=torch.int64)
    for slot in range(1, masks.shape[1]):
        mask = upsample(masks[:, slot : slot + 1], size)
        labels = torch.where(mask > highest, slot, labels)
        highest = torch.maximum(highest, mask)
    return labels.squeeze(1)


def upsample(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Soft masks [B, K, h, w] -> float32 [B, K, H, W] (bilinear, pixel centres aligned)."""
    return F.interpolate(masks.detach().float(), size=size, mode="bilinear", align_corners=False)


def overlay(picture: np.ndarray, colours: np.ndarray, *, alpha: float = 0.6, contours: bool = True) -> np.ndarray:
    """Coloured regions over the grey version of a picture: uint8 [H, W, 3] each -> uint8 [H, W, 3].

    colours: one colour per pixel, as from `paint` or `colour_labels`; over grey, each keeps its own hue.
    alpha: 0 shows the picture only, 1 the colours only. contours: mark the borders of regions in a darker shade.
    """
    if picture.shape != colours.shape:
        raise ShapeError(f"overlay needs picture and colours of one size, got {list(picture.shape)} and {list(colours.shape)}.")
    grey = picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    mixed = (1 - alpha) * grey[..., None] + alpha * colours
    if contours:
        edge = borders(colours)
        mixed[edge] = 0.55 * colours[edge]
    return np.rint(mixed).astype(np.uint8)


def paint(labels: np.ndarray) -> np.ndarray:
    """Slot numbers [H, W] -> their colours, uint8 [H, W, 3]."""
    return slot_colours(int(labels.max(initial=0)) + 1)[labels]


def borders(values: np.ndarray) -> np.ndarray:
    """Where a pixel [H, W] or [H, W, C] differs from the one to its right or below it: bool [H, W]."""
    values = values.reshape(*values.shape[:2], -1)
    edge = np.zeros(values.shape[:2], dtype=bool)
    edge[:, :-1] |= (values[:, :-1] != values[:, 1:]).any(-1)
    edge[:-1] |= (values[:-1] != values[1:]).any(-1)
    return edge


def cut_out(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The part of a picture [H, W, 3] under a mask [H, W] (bool, or float in [0, 1]) on transparent ground: uint8 [H, W, 4]."""
    alpha = np.rint(np.clip(mask.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    return np.dstack([picture, alpha])


def fade(picture: np.ndarray, mask: np.ndarray, *, ground: int = 245) -> np.ndarray:
    """A picture [H, W, 3] weighted by a soft mask [H, W] in [0, 1], on a light ground: uint8 [H, W, 3]."""
    weight = np.clip(mask.astype(np.float32), 0, 1)[..., None]
    return np.rint(weight * picture + (1 - weight) * ground).astype(np.uint8)
