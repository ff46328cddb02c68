"""Drawn scenes: an endless dataset with exact masks, properties and captions that needs no download.

Every scene follows from (seed, split, level, index) alone, through numpy's Philox generator (Salmon et al. 2011); the image
size only changes how finely it is drawn. In the manner of CLEVR and Multi-dSprites, with named levels of difficulty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch

from ocl.data.drawing import Light, Solid, blotches, centres, paint
from ocl.data.order import ENDLESS
from ocl.data.sample import Dataset, Sample
from ocl.data.shapes import FAMILIAR, UNSEEN
from ocl.errors import ConfigError

Level = Literal["plain", "textured", "cluttered"]
Split = Literal["train", "test", "ood"]

SHAPES = (*FAMILIAR, *UNSEEN)
COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.83, 0.20, 0.18), "orange": (0.93, 0.52, 0.15), "yellow": (0.93, 0.80, 0.22), "green": (0.27, 0.62, 0.27),
    "teal": (0.16, 0.62, 0.64), "blue": (0.20, 0.40, 0.80), "purple": (0.54, 0.30, 0.72), "pink": (0.90, 0.48, 0.66),
}  # fmt: skip
MATERIALS = ("matte", "glossy")
TEXTURES = ("plain", "stripes", "dots", "checks", "speckles")
SIZES = {"small": (0.09, 0.13), "medium": (0.13, 0.17), "large": (0.17, 0.22)}


@dataclass(frozen=True)
class _Rules:
    objects: tuple[int, int]
    apart: float  # least distance of two centres, as a share of the sum of their radii
    textures: tuple[str, ...]
    distractors: int


_LEVELS: Mapping[str, _Rules] = {
    "plain": _Rules(objects=(2, 5), apart=0.80, textures=("plain",), distractors=0),
    "textured": _Rules(objects=(2, 6), apart=0.70, textures=TEXTURES, distractors=0),
    "cluttered": _Rules(objects=(3, 10), apart=0.55, textures=TEXTURES, distractors=40),
}


@final
class Scenes(Dataset):
    """Solid shapes on a background; several may share a colour, and nearer ones hide parts of others.

    Samples carry instances (1 is farthest back; only visible objects, without gaps), classes (1 + index in SHAPES), a
    caption, and `properties`: one list per property with an entry per object (shape, colour, material, texture, size, x, y,
    radius, rotation in radians, depth from 1 for the front-most, visibility: the share of its own pixels that is seen).

    Args:
        level: plain backgrounds and objects of one colour; textured; or cluttered with distractors that are background.
        split: train and test never share a scene; ood has shapes and colour-texture pairs that neither shows, and more objects.
        image_size: side of the square image, 64 to 512.
        min_objects: fewest objects asked for; null takes the level's. A scene without room for all has fewer, never none.
        max_objects: most objects, at most 10; null takes the level's.
        size: number of scenes; null is endless.
        seed: another seed is another endless dataset.
    """

    def __init__(
        self,
        level: Level = "plain",
        split: Split = "train",
        image_size: int = 64,
        *,
        min_objects: int | None = None,
        max_objects: int | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        numbers = {"image_size": image_size, "min_objects": min_objects, "max_objects": max_objects, "size": size, "seed": seed}
        for name, number in numbers.items():
            if number is not None and not isinstance(number, int):
                raise ConfigError(f"Scenes needs a whole number for {name}, got {number!r}.")
        if level not in _LEVELS or split not in ("train", "test", "ood"):
            raise ConfigError(f"Scenes has levels {', '.join(_LEVELS)}, splits train, test, ood; got {level!r} and {split!r}.")
        if not 64 <= image_size <= 512:
            raise ConfigError(f"Scenes draws images of 64 to 512 pixels, got image_size={image_size}.")
        self._rules = _LEVELS[level]
        fewest, most = self._rules.objects
        if split == "ood":
            fewest, most = fewest + 2, min(most + 3, 10)
        self.level, self.split, self.image_size, self.size, self.seed = level, split, image_size, size, seed
        self.min_objects = min(fewest, most if max_objects is None else max_objects) if min_objects is None else min_objects
        self.max_objects = max(most, self.min_objects) if max_objects is None else max_objects
        if not 1 <= self.min_objects <= self.max_objects <= 10:
            got = f"{self.min_objects} and {self.max_objects}"
            raise ConfigError(f"Scenes needs 1 <= min_objects <= max_objects <= 10, got {got}.")
        if seed < 0 or (size is not None and size < 1):
            raise ConfigError(f"Scenes needs seed >= 0 and size >= 1 or null, got {seed} and {size}.")

    def __len__(self) -> int:
        return ENDLESS if self.size is None else self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"Scenes of size {len(self)} has no scene {index}.")
        splits, levels = ("train", "test", "ood"), tuple(_LEVELS)
        key = (self.seed, splits.index(self.split), levels.index(self.level), index)
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        light = _draw_light(random)
        records = self._draw_objects(random)
        canvas = _draw_background(random, self.level, self.image_size, self._rules.distractors, light)
        labels, visibility = paint(canvas, [solid for solid, _ in records], light)
        return self._sample(index, canvas, labels, visibility, records)

    def _draw_objects(self, random: np.random.Generator) -> list[tuple[Solid, dict[str, object]]]:
        """Back to front. Places are drawn until every object has room, or the scene is full."""
        wanted = int(random.integers(self.min_objects, self.max_objects + 1))
        crowded = (4 / max(wanted, 4)) ** 0.5
        found: list[tuple[Solid, dict[str, object]]] = []
        for _ in range(40 * wanted):
            if len(found) == wanted:
                break
            size = _pick(random, tuple(SIZES))
            radius = float(random.uniform(*SIZES[size])) * crowded
            x, y = (float(place) for place in random.uniform(radius * 0.9, 1 - radius * 0.9, 2))
            if all(np.hypot(x - other.x, y - other.y) > self._rules.apart * (radius + other.radius) for other, _ in found):
                found.append(self._draw_object(random, size, radius, x, y))
        return found

    def _draw_object(
        self, random: np.random.Generator, size: str, radius: float, x: float, y: float
    ) -> tuple[Solid, dict[str, object]]:
        shape = _pick(random, tuple(UNSEEN if self.split == "ood" else FAMILIAR))
        while True:
            name, texture = _pick(random, tuple(COLOURS)), _pick(random, self._rules.textures)
            if texture == "plain" or is_held_out(name, texture) == (self.split == "ood"):
                break
        material = _pick(random, MATERIALS)
        angle = float(random.uniform(-np.pi, np.pi)) if shape not in ("heart", "drop") else float(random.uniform(-0.5, 0.5))
        colour = np.array(COLOURS[name], np.float32) * random.uniform(0.88, 1.10) + random.uniform(-0.03, 0.03, 3)
        colour = np.minimum(np.maximum(colour, 0.05), 1)
        second = colour * 0.45 if random.random() < 0.5 else np.minimum(0.35 * colour + 0.62, 1)
        solid = Solid(
            shape=shape, x=x, y=y, radius=radius, angle=angle, colour=tuple(colour.tolist()), second=tuple(second.tolist()),
            texture=texture, frequency=float(random.uniform(7, 11)), gloss=0.75 if material == "glossy" else 0.0,
            grain=random.random((12, 12), dtype=np.float32),
        )  # fmt: skip
        record: dict[str, object] = {
            "shape": shape, "colour": name, "material": material, "texture": texture, "size": size, "x": x, "y": y,
            "radius": radius, "rotation": angle,
        }  # fmt: skip
        return solid, record

    def _sample(
        self,
        index: int,
        canvas: np.ndarray,
        labels: np.ndarray,
        visibility: list[float],
        records: list[tuple[Solid, dict[str, object]]],
    ) -> Sample:
        seen = [number for number, share in enumerate(visibility) if share > 0]
        rank, kind = np.zeros(len(records) + 1, dtype=np.int32), np.zeros(len(records) + 1, dtype=np.int32)
        objects = []
        for place, number in enumerate(seen, start=1):
            rank[number + 1], kind[number + 1] = place, 1 + SHAPES.index(str(records[number][1]["shape"]))
            objects.append({**records[number][1], "depth": 1 + len(seen) - place, "visibility": visibility[number]})
        picture = np.rint(np.clip(canvas, 0, 1, out=canvas) * 255).astype(np.uint8)
        return Sample(
            image=torch.from_numpy(picture),
            instances=torch.from_numpy(rank[labels]),
            classes=torch.from_numpy(kind[labels]),
            key=f"scenes/{self.level}/{self.split}/{index}",
            caption=_caption(objects, self.level),
            properties={name: [each[name] for each in objects] for name in (objects[0] if objects else ())},
        )


def is_held_out(colour: str, texture: str) -> bool:
    """Whether a colour wears a texture only in the ood split (one texture in four, another for each colour)."""
    return texture != "plain" and (list(COLOURS).index(colour) + TEXTURES.index(texture)) % 4 == 0


def _pick(random: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[random.integers(len(names))]


def _draw_light(random: np.random.Generator) -> Light:
    angle, height = random.uniform(np.pi * 1.1, np.pi * 1.9), random.uniform(0.60, 0.75)
    flat = (1 - height**2) ** 0.5
    return Light((float(flat * np.cos(angle)), float(flat * np.sin(angle)), float(height)), float(random.uniform(0.38, 0.50)))


def _draw_background(random: np.random.Generator, level: str, size: int, distractors: int, light: Light) -> np.ndarray:
    """float32 [3, size, size]: a softly lit wall, with blotches or with grain and distractors on the harder levels."""
    x, y = centres(size)
    tone = random.uniform(0.45, 0.72) + random.uniform(-0.07, 0.07, 3)
    slope = light.direction[0] * (x - 0.5) + light.direction[1] * (y - 0.5)
    vignette = (x - 0.5) ** 2 + (y - 0.5) ** 2
    brightness = 1 + np.float32(random.uniform(0.2, 0.6)) * slope - np.float32(random.uniform(0.1, 0.5)) * vignette
    canvas = brightness * tone.astype(np.float32)[:, None, None]
    if level != "plain":
        other = np.clip(tone + random.uniform(-0.22, 0.22, 3), 0.1, 0.95)
        field = random.random((int(random.integers(3, 9)),) * 2, dtype=np.float32)
        share = blotches(size, field)
        if random.random() < 0.4:  # grain, as of wood
            turn = random.uniform(0, np.pi)
            along = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))
            share = 0.5 + 0.5 * np.sin(np.float32(random.uniform(20, 45)) * along + 5 * share)
        canvas += brightness * share * (other - tone).astype(np.float32)[:, None, None]
    if distractors:
        _draw_distractors(random, canvas, tone, distractors)
    return canvas


def _draw_distractors(random: np.random.Generator, canvas: np.ndarray, tone: np.ndarray, count: int) -> None:
    """Faint flat chips and twigs that belong to the background, longest first, so that one patch size fits a group of them."""
    ranges = [(0, 1), (0, 1), (0.015, 0.09), (0.006, 0.020), (0, np.pi), (-0.28, 0.28), (-0.28, 0.28), (-0.28, 0.28)]
    low, high = np.array(ranges, dtype=np.float32).T
    draws = low + random.random((count, len(ranges)), dtype=np.float32) * (high - low)
    draws = draws[np.argsort(-draws[:, 2])]
    draws[:, 5:] = np.clip(draws[:, 5:] + tone.astype(np.float32), 0, 1)
    for group in np.split(draws, range(14, count, 14)):
        _draw_capsules(canvas, group[..., None, None])


def _draw_capsules(canvas: np.ndarray, capsules: np.ndarray) -> None:
    """Flat capsules [count, 8, 1, 1]: x, y, half length, half width, angle, red, green, blue; drawn in patches of one size."""
    size = canvas.shape[-1]
    x, y, length, width, turn = capsules[:, :5].swapaxes(0, 1)
    side = int(2 * float(length.max() + width.max()) * size) + 3
    left, top = (np.clip((place * size).astype(np.int64) - side // 2, 0, size - side) for place in (x, y))
    line = (np.arange(side, dtype=np.float32) + 0.5) / size
    dx, dy = (left / size).astype(np.float32) - x + line, (top / size).astype(np.float32) - y + line[:, None]
    cos, sin = np.cos(turn), np.sin(turn)
    beyond = np.maximum(np.abs(dx * cos + dy * sin) - length, 0)
    across = dy * cos - dx * sin
    distance = np.sqrt(beyond * beyond + across * across) - width
    covers = np.clip(0.5 - distance * size, 0, 1)
    for cover, colour, row, column in zip(covers, capsules[:, 5:], top.ravel(), left.ravel(), strict=True):
        patch = canvas[:, row : row + side, column : column + side]
        patch += cover * (colour - patch)


def _caption(objects: list[dict[str, object]], level: str) -> str:
    """One sentence that names every visible object, the front-most first."""
    if not objects:
        return f"an empty {level} scene"
    names = []
    for each in reversed(objects):
        texture = "" if each["texture"] == "plain" else f"{each['texture']}-patterned "
        names.append(f"a {each['size']} {each['colour']} {texture}{each['material']} {each['shape']}")
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
    return f"{listed} on a {level} background"
