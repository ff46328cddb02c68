"""Segmenting a folder of any photographs: index masks at their own size, overlays, cut-outs, a manifest and a page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ocl.data.decode import read_image
from ocl.data.folder import list_images
from ocl.data.sample import Sample, collate
from ocl.data.transforms import fit
from ocl.errors import ConfigError, DataError
from ocl.evaluate.contact import Segmented, contact_page
from ocl.evaluate.inference import MaskSource, inference, masks_of, run
from ocl.models.autoencoder import SlotAutoencoder
from ocl.vis.masks import cut_out, hard_labels, overlay, paint, upsample
from ocl.vis.png import to_picture, write_index_png, write_png, write_whole

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Segmentation:
    """What `segment` made: the folder, one entry per photograph, and the files that were skipped with the reason for each."""

    out: Path
    images: tuple[Segmented, ...]
    skipped: dict[str, str]


def segment(
    model: SlotAutoencoder,
    images: Path,
    out: Path,
    *,
    image_size: int,
    resize: Literal["stretch", "pad"] = "stretch",
    masks: MaskSource | None = None,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "cpu",
    skip_broken: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Segment every image below a folder into slots.

    Below `out`: masks/ (index PNG of each image's own size, pixel value = slot), overlays/, cut_outs/ (RGBA, one per slot),
    manifest.json and index.html. The model sees image_size x image_size pixels; its masks are brought back to the image's
    own shape before the argmax. masks: whose; None takes the decoder's where it draws any, else the slot module's.
    `out` appears only when all of it is written. An existing folder is replaced only with `overwrite`, and only if an earlier
    call made it. progress: called with (images done, images in all).
    Raises DataError for a folder without images and, unless `skip_broken`, for a broken file; ConfigError for a bad `out`.
    """
    _check_target(images, out, overwrite)
    keys = list_images(images)
    names, skipped, done = output_names(keys), dict[str, str](), list[Segmented]()
    model.to(device)
    with _whole_folder(out) as folder, inference(model):
        for first in range(0, len(keys), batch_size):
            photographs = _read(images, keys[first : first + batch_size], skipped if skip_broken else None)
            if photographs:
                views = [_View.of(image, key, image_size, resize) for key, image in photographs.items()]
                output = run(model, collate([view.sample for view in views]), names=list(photographs), seed=seed, device=device)
                soft = _chosen(masks_of(output, "slots"), masks_of(output, "decoder"), masks)
                for view, own in zip(views, soft.cpu(), strict=True):
                    done.append(_write(folder, names[view.sample.key], view, own))
            if progress is not None:
                progress(len(done) + len(skipped), len(keys))
        if not done:
            reason = next(iter(skipped.values()))
            raise DataError(f"none of the {len(keys)} images below {images} can be read; the first: {reason}")
        _write_manifest(folder, done, skipped)
        write_whole(folder / "index.html", contact_page(images.name, done, skipped))
    return Segmentation(out, tuple(done), skipped)


def output_names(keys: Sequence[str]) -> dict[str, str]:
    """A name for the outputs of each image: its path without suffix, or a longer one where two differ in nothing but case."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for key in keys:
        path = PurePosixPath(key)
        suffix = path.suffix.removeprefix(".")
        candidates = [path.with_suffix("").as_posix(), path.with_name(f"{path.stem}_{suffix}").as_posix()]
        candidates += [f"{candidates[1]}_{number}" for number in range(2, len(keys) + 2)]
        names[key] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(names[key].casefold())
    return names


@dataclass(frozen=True)
class _View:
    """A photograph [3, H, W] and what the model sees of it; inside: the rows and columns of that view which are photograph."""

    photograph: Tensor
    sample: Sample
    inside: tuple[slice, slice]

    @staticmethod
    def of(photograph: Tensor, key: str, image_size: int, resize: Literal["stretch", "pad"]) -> _View:
        everywhere = torch.zeros(photograph.shape[1:], dtype=torch.int32)
        seen = fit(Sample(photograph, instances=everywhere, key=key), image_size=image_size, resize=resize)
        assert seen.instances is not None
        rows, columns = ((seen.instances == 0).any(dim).nonzero() for dim in (1, 0))
        inside = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        return _View(photograph, Sample(seen.image, key=key), inside)

    def labels(self, soft: Tensor) -> np.ndarray:
        """Soft masks [K, h, w] of the view -> the slot of each pixel of the photograph, int64 [H, W]."""
        view_size = (self.sample.image.shape[1], self.sample.image.shape[2])
        rows, columns = self.inside
        if (rows.stop - rows.start, columns.stop - columns.start) != view_size:
            soft = upsample(soft[None], view_size)[0][:, rows, columns]
        return hard_labels(soft[None], (self.photograph.shape[1], self.photograph.shape[2]))[0].numpy()


def _read(folder: Path, keys: Sequence[str], skipped: dict[str, str] | None) -> dict[str, Tensor]:
    photographs = {}
    for key in keys:
        try:
            photographs[key] = read_image(folder / key)
        except DataError as error:
            if skipped is None:
                raise DataError(f"{error} Or segment the rest with skip_broken=true.") from error
            skipped[key] = str(error)
    return photographs


def _chosen(slots: Tensor | None, decoder: Tensor | None, masks: MaskSource | None) -> Tensor:
    found = {"slots": slots, "decoder": decoder, None: slots if decoder is None else decoder}[masks]
    if found is None:
        raise ConfigError("this model's decoder draws no masks; pass masks=slots.")
    return found


def _write(folder: Path, name: str, view: _View, soft: Tensor) -> Segmented:
    picture, labels = to_picture(view.photograph), view.labels(soft)
    height, width = labels.shape
    counts = np.bincount(labels.ravel(), minlength=len(soft))
    mask, shown = f"masks/{name}.png", f"overlays/{name}.png"
    cut_outs = tuple(f"cut_outs/{name}/slot_{slot:02d}.png" if count else None for slot, count in enumerate(counts))
    write_index_png(folder / mask, labels)
    write_png(folder / shown, overlay(picture, paint(labels)))
    for slot, path in enumerate(cut_outs):
        if path is not None:
            write_png(folder / path, cut_out(picture, labels == slot))
    shares = tuple(float(count) / labels.size for count in counts)
    return Segmented(view.sample.key, width, height, mask, shown, cut_outs, shares)


def _write_manifest(folder: Path, done: list[Segmented], skipped: dict[str, str]) -> None:
    content = {"images": [asdict(image) for image in done], "skipped": skipped}
    write_whole(folder / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def _check_target(images: Path, out: Path, overwrite: bool) -> None:
    if images.resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(f"{out} lies inside the folder of images {images}; write the segments beside it.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} exists and holds other files than segments; pass another folder.")
    if not overwrite:
        raise ConfigError(f"{out} already holds segments; pass another folder, or overwrite=true to replace them.")


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write in, which takes the place of `out` at the end, or vanishes on any error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("partial", "former"))
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            out.rename(former)
        partial.rename(out)
    except BaseException:
        if former.exists() and not out.exists():
            former.rename(out)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)
