"""PNG files of pictures and of slot numbers, written whole or not at all."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ocl.errors import OCLError, RangeError, ShapeError
from ocl.vis.colours import slot_colours


def to_picture(image: Tensor) -> np.ndarray:
    """Image [3, H, W], float in [0, 1] (clamped) or uint8 -> picture, uint8 [H, W, 3], on the CPU."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ShapeError(f"to_picture expects one image [3, H, W], got {list(image.shape)}; pass one image of the batch.")
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float().clamp(0, 1).mul(255).round().byte()
    return image.permute(1, 2, 0).contiguous().numpy()


def png_bytes(picture: np.ndarray) -> bytes:
    """A PNG file of uint8 [H, W, 3] (RGB), [H, W, 4] (RGBA) or [H, W] (grey)."""
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
        raise ShapeError(f"a picture must be uint8 [H, W], [H, W, 3] or [H, W, 4], got {picture.dtype} {list(picture.shape)}.")
    return _encode(Image.fromarray(picture))


def index_png_bytes(labels: np.ndarray) -> bytes:
    """A PNG file whose pixel values are the labels: integers [H, W] >= 0, read back exactly by any PNG reader.

    Up to 256 labels make an 8-bit palette PNG that shows slot colours; up to 65,536 a 16-bit grey one.
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ShapeError(f"an index PNG needs integer labels [H, W], got {labels.dtype} {list(labels.shape)}.")
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > 65535:
        raise RangeError(f"an index PNG holds labels 0 to 65535, got {low} to {high}; renumber them first.")
    if high > 255:
        return _encode(Image.fromarray(labels.astype(np.uint16)))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(slot_colours(256).tobytes())
    return _encode(picture)


def write_png(path: Path, picture: np.ndarray) -> None:
    """`png_bytes` of the picture, written to `path`; its folder is made if needed."""
    write_whole(path, png_bytes(picture))


def write_index_png(path: Path, labels: np.ndarray) -> None:
    """`index_png_bytes` of the labels, written to `path`; its folder is made if needed."""
    write_whole(path, index_png_bytes(labels))


def read_index_png(path: Path) -> np.ndarray:
    """The labels of a file from `write_index_png`, int64 [H, W]."""
    with Image.open(path) as picture:
        return np.array(picture, dtype=np.int64)


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at `path` in one step: a reader sees the old content or the new one, and a failure leaves the old.

    Its folder is made if needed. Raises OCLError where the system refuses (full disk, no permission).
    """
    partial = path.with_name(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise OCLError(f"{path} could not be written ({error}); free some space or choose another folder.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
