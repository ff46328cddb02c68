"""COCO instance annotations, drawn as label maps (Lin et al. 2014): polygons, drawn by pycocotools, and run lengths."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, final

import numpy as np
import torch

from ocl.data.decode import read_image
from ocl.data.files import FileDataset, OnError
from ocl.data.sample import Sample
from ocl.data.transforms import IGNORE, Resize
from ocl.errors import ConfigError, DataError, MissingExtra

Crowd = Literal["background", "ignore"]


@dataclass(frozen=True)
class Annotation:
    """One object of one image: polygons (lists of x, y, x, y, ...) or run lengths, as in the COCO file."""

    id: int
    class_id: int
    segmentation: Any
    crowd: bool = False


@dataclass(frozen=True)
class _Image:
    id: int
    name: str
    height: int
    width: int


@final
class COCOInstances(FileDataset):
    """Images of COCO with one instance map and one class map; images without annotations are all background.

    Pixels of two or more instances are -1 in `instances` (every published protocol that we know leaves them out); in `classes`
    the later annotation wins, so a protocol that leaves overlaps out of class scores too takes `instances == -1` as well.
    `class_names` tells what the numbers in `classes` mean: the category ids of the file, moved up by one where an object has
    category 0, since 0 is background here.

    Args:
        root: the folder that holds annotations/ and the images (train2017/, val2017/, or those below images/), or any folder
            with an annotations.json.
        split: the name in instances_<split>.json and of the image folder.
        image_size: side of the square that every image becomes, in pixels; null keeps them as they are.
        annotations: another annotation file in the COCO format.
        crowd: what crowd regions (and annotations marked `ignore`) are where no single object is: background, as in
            SlotDiffusion and CODA, or ignored (-1) in both maps.
        resize: crop the centre (published protocols), pad with ignored pixels, or stretch.
        on_error: raise at a broken file, or skip its sample (counted and reported).
    """

    class_names: dict[int, str]

    def __init__(
        self,
        root: Path,
        split: str = "val2017",
        image_size: int | None = None,
        *,
        annotations: Path | None = None,
        crowd: Crowd = "background",
        resize: Resize = "crop",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(image_size=image_size, resize=resize, on_error=on_error)
        if crowd not in ("background", "ignore"):
            raise ConfigError(f'crowd must be "background" or "ignore", got {crowd!r}.')
        _mask_tools()
        self.crowd: Crowd = crowd
        self._file = _find_annotations(Path(root), split) if annotations is None else Path(annotations)
        self._images, self._annotations, self.class_names = _parse(self._file)
        self._folder = _find_images(Path(root), split, self._file, self._images)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images[index].name

    def read(self, index: int) -> Sample:
        entry = self._images[index]
        path = self._folder / entry.name
        image = read_image(path)
        height, width = image.shape[1:]
        if (height, width) != (entry.height, entry.width):
            raise DataError(
                f"{path} is {height} x {width} pixels (height x width), but {self._file} says "
                f"{entry.height} x {entry.width}; a mask must have the size of its image: replace one of them."
            )
        try:
            instances, classes = rasterise(self._annotations[entry.id], height=height, width=width, crowd=self.crowd)
        except DataError as error:
            raise DataError(f"{self._file}, image {entry.name}: {error}") from error
        return Sample(image, torch.from_numpy(instances), torch.from_numpy(classes), key=entry.name)


def rasterise(
    annotations: Sequence[Annotation], *, height: int, width: int, crowd: Crowd = "background"
) -> tuple[np.ndarray, np.ndarray]:
    """Annotations of one image -> instances and classes, int32 [H, W]; object k is the k-th annotation, counted from 1."""
    instances, classes = np.zeros((2, height, width), np.int32)
    claimed, overlap, crowded = np.zeros((3, height, width), bool)
    for number, annotation in enumerate(annotations, start=1):
        region = _decode(annotation, height, width)
        if annotation.crowd:
            crowded |= region
            continue
        overlap |= claimed & region
        claimed |= region
        instances[region] = number
        classes[region] = annotation.class_id
    instances[overlap] = IGNORE
    if crowd == "ignore":
        instances[crowded & ~claimed] = IGNORE
        classes[crowded & ~claimed] = IGNORE
    return instances, classes


def _decode(annotation: Annotation, height: int, width: int) -> np.ndarray:
    """The pixels of one annotation, bool [H, W]."""
    shape = annotation.segmentation
    try:
        return _fill(shape, height, width) if isinstance(shape, list) else _unroll(shape, height, width)
    except Exception as error:  # pycocotools raises plain Exceptions
        raise DataError(f"annotation {annotation.id} is no valid mask: {error}; correct or remove it.") from error


def _fill(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    shapes = [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than three corners cover nothing
    if not shapes:
        return np.zeros((height, width), bool)
    tools = _mask_tools()
    region: np.ndarray = tools.decode(tools.frPyObjects(shapes, height, width))  # one channel per polygon
    return region.max(axis=-1).astype(bool)


def _unroll(shape: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Run lengths go down the columns; they alternate between outside and inside and start outside."""
    if list(shape["size"]) != [height, width]:
        raise ValueError(f"its size is {shape['size']} and that of the image {[height, width]}")
    counts = shape["counts"]
    runs = np.array(_unpack(counts) if isinstance(counts, str) else counts, np.int64)
    if runs.sum() != height * width:
        raise ValueError(f"its runs cover {runs.sum()} pixels of {height * width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _unpack(text: str) -> list[int]:
    """The run lengths in a string of COCO: 5 bits a character, low bits first, a sixth bit while more follow; from the fourth
    run on, the difference to the run before the last. (pycocotools reads past the end of a damaged string.)"""
    runs: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def _mask_tools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingExtra("COCO masks", "pycocotools", "data") from error
    return mask


def _find_annotations(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; pass the folder that holds annotations/ and the images.")
    for path in (root / "annotations" / f"instances_{split}.json", root / "annotations.json"):
        if path.is_file():
            return path
    known = sorted(path.stem.removeprefix("instances_") for path in (root / "annotations").glob("instances_*.json"))
    raise DataError(
        f"{root} holds neither annotations/instances_{split}.json nor annotations.json; "
        f"the splits there are {', '.join(known) or 'none'}."
    )


def _find_images(root: Path, split: str, file: Path, images: list[_Image]) -> Path:
    folders = [root / "images" / split, root / split, root / "images", root, file.parent]
    for folder in folders:
        if any((folder / image.name).is_file() for image in images[:100]):
            return folder
    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise DataError(f"{images[0].name} of {file} is in none of {looked}; unpack the images into one of them.")


def _parse(file: Path) -> tuple[list[_Image], dict[int, list[Annotation]], dict[int, str]]:
    """Images in the order of the file, annotations by image id, and class names; all checked for what is read later."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file} is missing; pass the file of instance annotations.") from None
    except ValueError as error:
        raise DataError(f"{file} is no complete JSON file ({error}); download it again.") from error
    try:
        images = [_Image(image["id"], str(image["file_name"]), image["height"], image["width"]) for image in content["images"]]
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        shift = int(any(entry["category_id"] == 0 for entry in content["annotations"]))
        by_image: dict[int, list[Annotation]] = defaultdict(list)
        for entry in content["annotations"]:
            crowd = bool(entry.get("iscrowd") or entry.get("ignore"))
            annotation = Annotation(entry["id"], entry["category_id"] + shift, entry["segmentation"], crowd)
            by_image[entry["image_id"]].append(annotation)
        ids = {image.id for image in images}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} does not hold COCO instances (at {error}); use instances_<split>.json.") from error
    if not images:
        raise DataError(f"{file} lists no image; use instances_<split>.json.")
    strangers = sum(len(found) for image_id, found in by_image.items() if image_id not in ids)
    if strangers:
        warnings.warn(f"{file}: {strangers} annotations of images that it does not list are left out.", stacklevel=4)
    return images, by_image, {number + shift: name for number, name in names.items()}
