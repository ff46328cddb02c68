"""PASCAL VOC instance and class masks, in the layouts people have (Everingham et al. 2010).

Void (255, in either mask) is -1 in both maps, so that a protocol can decide what to do with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from ocl.data.decode import read_image, read_labels
from ocl.data.files import FileDataset, OnError
from ocl.data.folder import natural
from ocl.data.sample import Sample
from ocl.data.transforms import IGNORE, Resize
from ocl.errors import DataError

VOID = 255
_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
_BELOW_ROOT = ("", "VOC2012", "VOCdevkit/VOC2012", "voc")
_LAYOUTS = (("JPEGImages", "ImageSets/Segmentation"), ("images", "sets"))  # official; SlotDiffusion and CODA


@final
class VOCInstances(FileDataset):
    """Images of VOC with instance masks (SegmentationObject) and class masks (SegmentationClass).

    Read as they are: the official devkit, and the layout of SlotDiffusion and CODA (images/, sets/). Splits whose name ends in
    `aug` (trainaug) have class masks only (SegmentationClassAug, left out where that folder is absent): most of their images
    have no instance mask. Where a folder has no lists at all, every image with both masks is taken, whatever the split.

    Args:
        root: the folder of the masks, or one above it (VOCdevkit, or the folder of VOCdevkit).
        split: which list to read, such as train, val, trainval, trainaug.
        image_size: side of the square that every image becomes, in pixels; null keeps them as they are.
        resize: crop the centre (published protocols), pad with ignored pixels, or stretch.
        on_error: raise at a broken file, or skip its sample (counted and reported).
    """

    def __init__(
        self,
        root: Path,
        split: str = "val",
        image_size: int | None = None,
        *,
        resize: Resize = "crop",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(image_size=image_size, resize=resize, on_error=on_error)
        self._folders = _find_folders(Path(root), split)
        self._entries = _list_entries(self._folders, split)

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        return self._entries[index].name

    def read(self, index: int) -> Sample:
        entry = self._entries[index]
        photo = self._existing(self._folders.images, entry, _PHOTO_SUFFIXES)
        image = read_image(photo)
        instances = self._read_mask(self._folders.instances, entry, photo, image)
        classes = self._read_mask(self._folders.classes, entry, photo, image)
        if instances is not None and classes is not None:
            void = (instances == VOID) | (classes == VOID)
            instances, classes = instances.masked_fill(void, IGNORE), classes.masked_fill(void, IGNORE)
        elif classes is not None:
            classes = classes.masked_fill(classes == VOID, IGNORE)
        return Sample(image, instances, classes, key=entry.name)

    def _read_mask(self, folder: Path | None, entry: _Entry, photo: Path, image: Tensor) -> Tensor | None:
        if folder is None:
            return None
        path = self._existing(folder, entry, (".png",))
        mask = read_labels(path)
        if mask.shape != image.shape[1:]:
            raise DataError(
                f"{path} is {mask.shape[0]} x {mask.shape[1]} pixels (height x width), but {photo} is "
                f"{image.shape[1]} x {image.shape[2]}; a mask must have the size of its image: replace one of them."
            )
        return mask

    def _existing(self, folder: Path, entry: _Entry, suffixes: tuple[str, ...]) -> Path:
        for suffix in suffixes:
            path = folder / f"{entry.name}{suffix}"
            if path.is_file():
                return path
        raise DataError(
            f"{folder / entry.name}{suffixes[0]} is missing ({entry.origin}); run `ocl data check {self._folders.base}`."
        )


@dataclass(frozen=True)
class _Entry:
    name: str
    origin: str  # where the name was listed


@dataclass(frozen=True)
class _Folders:
    base: Path
    images: Path
    lists: Path
    instances: Path | None
    classes: Path | None


def _find_folders(root: Path, split: str) -> _Folders:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; pass the folder that holds JPEGImages and SegmentationObject.")
    for base in (root / below for below in _BELOW_ROOT):
        for images, lists in _LAYOUTS:
            if (base / images).is_dir() and (base / "SegmentationClass").is_dir():
                augmented = split.endswith("aug")
                classes = base / ("SegmentationClassAug" if augmented else "SegmentationClass")
                return _Folders(
                    base,
                    base / images,
                    base / lists,
                    instances=None if augmented else base / "SegmentationObject",
                    classes=None if augmented and not classes.is_dir() else classes,
                )
    raise DataError(
        f"{root} is not a VOC folder: neither JPEGImages nor images stands beside SegmentationClass there or in "
        f"{', '.join(_BELOW_ROOT[1:])}; pass the folder that VOCtrainval_11-May-2012.tar was unpacked to."
    )


def _list_entries(folders: _Folders, split: str) -> list[_Entry]:
    if not folders.lists.is_dir():
        return _entries_with_masks(folders)
    path = folders.lists / f"{split}.txt"
    if not path.is_file():
        known = sorted(other.stem for other in folders.lists.glob("*.txt"))
        raise DataError(f"{path} is missing; the splits there are {', '.join(known) or 'none'}.")
    entries = [
        _Entry(_listed_name(line), f"{path.name} line {number}")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if line.strip()
    ]
    if not entries:
        raise DataError(f"{path} lists no image; restore it from the VOC archive.")
    return entries


def _entries_with_masks(folders: _Folders) -> list[_Entry]:
    masks = [folder for folder in (folders.instances, folders.classes) if folder is not None]
    photos = (path for path in folders.images.iterdir() if path.suffix in _PHOTO_SUFFIXES)
    names = sorted((path.stem for path in photos if all((mask / f"{path.stem}.png").is_file() for mask in masks)), key=natural)
    if not names:
        wanted = " and ".join(str(mask) for mask in masks)
        raise DataError(f"no image of {folders.images} has a mask of the same name (.png) in {wanted}; check the file names.")
    return [_Entry(name, "no list file, taken from its folder") for name in names]


def _listed_name(line: str) -> str:
    """The image of one line: a bare name, or (lists of DeepLab) the path of the image and that of its mask."""
    first = line.split()[0]
    return Path(first).stem if Path(first).suffix in _PHOTO_SUFFIXES else first
