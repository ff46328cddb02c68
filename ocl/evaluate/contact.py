"""The record of a segmented photograph, and the page on which one looks at many of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from ocl.evaluate.html import page, tag, wrap
from ocl.vis.colours import slot_colours


@dataclass(frozen=True)
class Segmented:
    """One photograph: its file below the folder, its size, the files made (below `out`), and the share of pixels of each slot.

    cut_outs: one file per slot, None for a slot that owns no pixel.
    """

    file: str
    width: int
    height: int
    mask: str
    overlay: str
    cut_outs: tuple[str | None, ...]
    shares: tuple[float, ...]


def contact_page(title: str, images: Sequence[Segmented], skipped: Mapping[str, str]) -> bytes:
    """An HTML page that shows the overlay of each image, how its slots share it, and links to all files (relative paths)."""
    heading = f"Segments of {title}"
    parts = [tag("h1", heading), tag("p", f"{len(images)} images, {len(skipped)} skipped", class_="soft")]
    parts.append(wrap("div", "".join(map(_card, images)), class_="cards"))
    if skipped:
        parts += [tag("h2", "Skipped"), wrap("dl", "".join(tag("dt", file) + tag("dd", why) for file, why in skipped.items()))]
    return page(heading, "\n".join(parts))


def _card(image: Segmented) -> str:
    colours = ["#" + bytes(colour.tolist()).hex() for colour in slot_colours(len(image.shares))]
    bars = [
        wrap("span", "", style=f"width:{100 * share:.2f}%;background:{colour}", title=f"slot {slot}: {share:.1%}")
        for slot, (share, colour) in enumerate(zip(image.shares, colours, strict=True))
        if share
    ]
    links = [wrap("a", f"slot {slot}", href=_link(path)) for slot, path in enumerate(image.cut_outs) if path is not None]
    shown = wrap("a", f'<img src="{_link(image.overlay)}" loading="lazy" alt="">', href=_link(image.overlay))
    lines = [shown, tag("div", image.file, class_="name"), wrap("div", "".join(bars), class_="shares")]
    lines.append(wrap("div", " · ".join([wrap("a", "mask", href=_link(image.mask)), *links]), class_="soft"))
    return wrap("div", "".join(lines), class_="card")


def _link(path: str) -> str:
    return quote(path, errors="surrogateescape")
