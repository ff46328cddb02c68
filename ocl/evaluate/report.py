"""The report of an evaluation: one HTML file with everything in it, and the same scores as JSON beside it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

import ocl
from ocl.evaluate.curves import Curve, curve_html
from ocl.evaluate.html import figure, page, tag, wrap
from ocl.evaluate.tables import Table, table_html, table_json
from ocl.vis.png import write_whole


@dataclass(frozen=True)
class Picture:
    """A picture, uint8 [H, W, 3], and what it shows."""

    picture: np.ndarray
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a report beyond its scores: paragraphs, curves and pictures under a title."""

    title: str
    paragraphs: Sequence[str] = ()
    curves: Sequence[Curve] = ()
    pictures: Sequence[Picture] = ()


def write_report(
    path: Path,
    *,
    title: str,
    summary: str = "",
    tables: Sequence[Table] = (),
    panels: Sequence[Picture] = (),
    sections: Sequence[Section] = (),
    curves: Sequence[Curve] = (),
    configuration: str = "",
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write `path` (HTML without scripts or other files) and, beside it, scores.json; returns the path of the latter.

    Sections without content are left out. configuration: the resolved config, as text. notes: name -> text, such as
    `environment()`. Both files are replaced in one step each.
    """
    notes = notes or {}
    parts = [tag("h1", title)]
    if summary:
        parts.append(tag("p", summary))
    for table in tables:
        parts += [tag("h2", table.title), table_html(table)]
    if panels:
        parts += [tag("h2", "Masks"), _pictures(panels)]
    for section in sections:
        parts += [tag("h2", section.title), *(tag("p", text) for text in section.paragraphs)]
        parts += [_curves(section.curves), _pictures(section.pictures)]
    if curves:
        parts += [tag("h2", "Training"), _curves(curves)]
    if configuration:
        parts += [tag("h2", "Configuration"), tag("pre", configuration)]
    if notes:
        listed = "".join(tag("dt", name) + tag("dd", text) for name, text in notes.items())
        parts += [tag("h2", "How this was made"), wrap("dl", listed)]
    scores = {"title": title, "tables": [table_json(table) for table in tables], "notes": dict(notes)}
    beside = path.with_name("scores.json")
    write_whole(beside, (json.dumps(scores, indent=1, allow_nan=False) + "\n").encode())
    write_whole(path, page(title, "\n".join(parts)))
    return beside


def environment(argv: Sequence[str] | None = None) -> dict[str, str]:
    """The command, date, versions and hardware of this process, as notes for a report. argv: default, that of this process."""
    program, *options = sys.argv if argv is None else argv
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "Command": shlex.join([Path(program).name, *options]),
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Versions": f"ocl {ocl.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "Processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "Accelerator": ", ".join(devices) or "none",
    }


def _pictures(panels: Sequence[Picture]) -> str:
    return wrap("div", "".join(figure(panel.picture, panel.caption) for panel in panels), class_="panels")


def _curves(curves: Sequence[Curve]) -> str:
    return wrap("div", "".join(map(curve_html, curves)), class_="curves")


def _processor() -> str:
    """The name of the CPU, where the system tells it."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
