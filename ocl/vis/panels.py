"""Panels: one row per image, with ground truth, slot and decoder masks, the reconstruction, and what each slot looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ocl.errors import ShapeError
from ocl.types import Batch, Output
from ocl.vis.colours import colour_labels, slot_colours
from ocl.vis.masks import fade, hard_labels, overlay, paint, upsample
from ocl.vis.png import to_picture

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP, MARGIN, HEADING = 4, 12, 20
INK, PAPER, BLANK = (38, 38, 38), (255, 255, 255), (235, 235, 235)


@dataclass(frozen=True)
class Example:
    """One image and what a model made of it, on the CPU.

    picture: uint8 [H, W, 3]. slots: soft masks [K, h, w] from the slot module. decoder: soft masks [K, h, w] or None.
    truth: instances (or else classes), integers [H, W], or None. reconstruction: uint8 [H, W, 3] or None.
    """

    picture: np.ndarray
    slots: Tensor
    decoder: Tensor | None = None
    truth: np.ndarray | None = None
    reconstruction: np.ndarray | None = None
    name: str = ""


def examples(batch: Batch, output: Output, *, limit: int | None = None) -> list[Example]:
    """The first `limit` images of a batch with their part of the model's output."""
    count = len(batch) if limit is None else min(limit, len(batch))
    truth = batch.instances if batch.instances is not None else batch.classes
    drawn = reconstruction(batch, output)
    maps, masks = output.slots.maps(), output.decoding.masks
    return [
        Example(
            picture=to_picture(batch.image[index]),
            slots=maps[index].detach().float().cpu(),
            decoder=None if masks is None else masks[index].detach().float().cpu(),
            truth=None if truth is None else truth[index].cpu().numpy(),
            reconstruction=None if drawn is None else to_picture(drawn[index]),
            name=batch.keys[index] if batch.keys else "",
        )
        for index in range(count)
    ]


def reconstruction(batch: Batch, output: Output) -> Tensor | None:
    """The decoder's prediction as images [B, 3, H, W] where its target is the image itself, else None (features, noise)."""
    prediction, target = output.decoding.prediction, output.decoding.target
    if target.shape != batch.image.shape or not torch.equal(target.to(batch.image.device), batch.image):
        return None
    return prediction


def panel(rows: Sequence[Example], *, tile: int | None = None) -> np.ndarray:
    """A grid of pictures with column headings: uint8 [height, width, 3].

    Columns: image, ground truth, slot masks, decoder masks, reconstruction (each only where some row has it), then one
    tile per slot: the image weighted by that slot's mask, under a bar in the slot's colour. Slot tiles use the decoder's
    masks where there are any, else the slot module's.
    tile: height of a tile in pixels; by default that of the tallest image, kept between 112 and 224.
    """
    if not rows:
        raise ShapeError("a panel needs at least one example, got none.")
    height = tile or int(np.clip(max(row.picture.shape[0] for row in rows), 112, 224))
    table = [_tiles(row, height) for row in rows]
    shared = [name for name in _SHARED if any(name in tiles for tiles in table)]
    slots = [f"slot {number}" for number in range(max(len(_shown(row)) for row in rows))]
    widths = {name: max(tiles[name].shape[1] for tiles in table if name in tiles) for name in shared + slots}
    lefts = _lefts([widths[name] for name in shared], [widths[name] for name in slots])
    columns = [(name, left, widths[name]) for name, left in zip(shared + slots, lefts, strict=True)]
    return _draw(table, columns, height)


_SHARED = ("image", "truth", "slot masks", "decoder masks", "reconstruction")


def _shown(row: Example) -> Tensor:
    return row.slots if row.decoder is None else row.decoder


def _tiles(row: Example, height: int) -> dict[str, np.ndarray]:
    """Column name -> picture [height, width, 3]; masks are drawn at this size, so that their borders stay crisp."""
    size = (height, max(1, round(height * row.picture.shape[1] / row.picture.shape[0])))
    picture = _resize(row.picture, size)
    tiles = {"image": picture}
    if row.truth is not None:
        tiles["truth"] = _resize(colour_labels(row.truth), size, Image.Resampling.NEAREST)
    for name, masks in (("slot masks", row.slots), ("decoder masks", row.decoder)):
        if masks is not None:
            tiles[name] = overlay(picture, paint(hard_labels(masks[None], size)[0].numpy()))
    if row.reconstruction is not None:
        tiles["reconstruction"] = _resize(row.reconstruction, size)
    for number, mask in enumerate(upsample(_shown(row)[None], size)[0].numpy()):
        tiles[f"slot {number}"] = fade(picture, mask)
    return tiles


def _resize(
    picture: np.ndarray, size: tuple[int, int], how: Image.Resampling = Image.Resampling.LANCZOS
) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), how))


def _lefts(shared: list[int], slots: list[int]) -> list[int]:
    """Left edges of the columns: a small gap between neighbours, a wider one before the slots."""
    gaps = [GAP] * (len(shared) - 1) + [3 * GAP] + [GAP] * (len(slots) - 1)
    widths = shared + slots
    return [MARGIN + sum(widths[:index]) + sum(gaps[:index]) for index in range(len(widths))]


def _draw(table: list[dict[str, np.ndarray]], columns: list[tuple[str, int, int]], height: int) -> np.ndarray:
    _, last_left, last_width = columns[-1]
    top = MARGIN + HEADING
    sheet = Image.new("RGB", (last_left + last_width + MARGIN, top + len(table) * (height + GAP) - GAP + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for name, left, width in columns:
        _head(pen, name, left, width)
        for number, tiles in enumerate(table):
            tile = tiles.get(name, np.full((height, width, 3), BLANK, dtype=np.uint8))
            sheet.paste(Image.fromarray(tile), (left + (width - tile.shape[1]) // 2, top + number * (height + GAP)))
    return np.asarray(sheet)


def _head(pen: ImageDraw.ImageDraw, name: str, left: int, width: int) -> None:
    pen.text((left + width / 2, MARGIN + HEADING / 2 - 3), name, fill=INK, font=_font(name, width), anchor="mm")
    if name not in _SHARED:
        red, green, blue = slot_colours(int(name.removeprefix("slot ")) + 1)[-1].tolist()
        pen.rectangle((left, MARGIN + HEADING - 5, left + width - 1, MARGIN + HEADING - 2), fill=(red, green, blue))


def _font(text: str, width: int) -> Font:
    """The largest size at which the text fits the column; the smallest where none does."""
    fonts = [ImageFont.load_default(points) for points in (13, 12, 11, 10, 9)]
    return next((font for font in fonts if font.getlength(text) <= width), fonts[-1])
