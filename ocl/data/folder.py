"""A folder of any images, without ground truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import final

from ocl.data.decode import IMAGE_SUFFIXES, read_image
from ocl.data.files import FileDataset, OnError
from ocl.data.sample import Sample
from ocl.data.transforms import Resize
from ocl.errors import DataError


@final
class ImageFolder(FileDataset):
    """Every image below a folder, in natural order (2.jpg before 10.jpg); the key is the path below the folder.

    Args:
        root: the folder; sub-folders are searched, hidden files are not.
        image_size: side of the square that every image becomes, in pixels; null keeps them as they are.
        resize: crop the centre, pad with black, or stretch.
        on_error: raise at a broken file, or skip it (counted and reported).
    """

    def __init__(
        self, root: Path, image_size: int | None = None, *, resize: Resize = "crop", on_error: OnError = "raise"
    ) -> None:
        super().__init__(image_size=image_size, resize=resize, on_error=on_error)
        self.root = Path(root)
        self._keys = list_images(self.root)

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        return self._keys[index]

    def read(self, index: int) -> Sample:
        return Sample(read_image(self.root / self._keys[index]), key=self._keys[index])


def list_images(root: Path) -> list[str]:
    """Paths of all images below `root`, relative to it, in natural order. DataError where there is none."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; pass the folder that holds the images.")
    paths = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    keys = sorted((path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)), key=natural)
    if not keys:
        raise DataError(f"{root} holds no image; put files named {', '.join('*' + suffix for suffix in IMAGE_SUFFIXES)} there.")
    return keys


def natural(name: str) -> tuple[list[str | int], str]:
    """A sorting key under which numbers inside names count as numbers."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)], name
