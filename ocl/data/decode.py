"""Image files to tensors (Pillow): photographs as RGB, label maps as the exact integers that were written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ocl.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(path: Path) -> Tensor:
    """Any picture as uint8 [3, H, W], turned upright by its EXIF orientation.

    Grey becomes RGB, 16 bits keep their upper 8, transparent pixels show white, an animation gives its first frame.
    Raises DataError for a file that is missing, empty, truncated, or no picture.
    """
    with _opened(path) as image:
        return torch.from_numpy(np.array(_rgb(ImageOps.exif_transpose(image), path))).permute(2, 0, 1).contiguous()


def read_labels(path: Path) -> Tensor:
    """An index mask as int32 [H, W]: palette indices or grey values exactly as stored, never by way of colours.

    Raises DataError as `read_image` does, and for a mask that holds colours.
    """
    with _opened(path) as image:
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise DataError(f"{path} must be an index mask (palette or grey), got mode {image.mode}; save the indices.")
        return torch.from_numpy(np.array(image).astype(np.int32))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    way_out = 'replace or remove it, or pass on_error="skip"'
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes) and cannot be an image; {way_out}.")
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f'{path} is missing; restore it, or pass on_error="skip".') from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more for damaged files
        raise DataError(f"{path} cannot be read as an image ({error}); {way_out}.") from error


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point pixels of unknown range; save it with 8 or 16 bits per channel.")
    if image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError(f"{path} must have at most 16 bits, got values {values.min()} to {values.max()}; save it with 8.")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
