"""Training curves as SVG, drawn from the JSON lines of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ocl.errors import DataError
from ocl.evaluate.html import tag, wrap
from ocl.vis.colours import slot_colours

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 34  # margins of the plot inside the drawing
MOST_POINTS = 400  # of a line; more cannot be told apart at this width

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Lines under one title: name -> (step, value) in rising order of steps, all values finite. across: what the steps are."""

    title: str
    lines: Mapping[str, Line]
    across: str = "step"


def read_curves(log: Path, *, leave_out: Collection[str] = ("samples",)) -> list[Curve]:
    """The numbers of a run's log.jsonl as curves: the loss, then what was evaluated, then the rest.

    `eval/slots X` and `eval/decoder X` are two lines of one curve. Left out are the numbers named, and those that never change.
    A last line that was cut off in the middle is no error; any other line that is not a JSON object raises DataError.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for values in _read_lines(log):
        step = float(values.pop("step"))
        for name, value in values.items():
            if name not in leave_out and isinstance(value, int | float) and math.isfinite(value):
                lines.setdefault(name, []).append((step, float(value)))
    curves: dict[str, dict[str, Line]] = {}
    for name in sorted(lines, key=_rank):
        if len({value for _, value in lines[name]}) > 1:
            title, own = _title(name)
            curves.setdefault(title, {})[own] = lines[name]
    return [Curve(title, own) for title, own in curves.items()]


def curve_html(curve: Curve) -> str:
    """The curve as inline SVG with its title; several lines get a legend in their colours."""
    points = [point for line in curve.lines.values() for point in line]
    if not points:
        return tag("p", f"{curve.title}: no values", class_="soft")
    across, up = ticks(*_range([x for x, _ in points])), ticks(*_range([y for _, y in points]))
    colours = ["#" + bytes(colour.tolist()).hex() for colour in slot_colours(len(curve.lines))]
    parts, legend = _axes(across, up, curve.across), []
    for (name, line), colour in zip(curve.lines.items(), colours, strict=True):
        spots = [(_place(x, across, LEFT, WIDTH - RIGHT), _place(y, up, HEIGHT - BOTTOM, TOP)) for x, y in _thin(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>')
        last = f"{line[-1][1]:.4g}"
        label = f" {name} {last}" if len(curve.lines) > 1 else f" {last} at the end"
        legend.append(wrap("span", " —", style=f"color:{colour}") + tag("span", label))
    drawing = wrap("svg", "".join(parts), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    return wrap("figure", wrap("figcaption", tag("strong", curve.title) + "".join(legend)) + drawing)


def ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that span low to high, at least two."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _read_lines(log: Path) -> list[dict[str, Any]]:
    texts = log.read_text(encoding="utf-8").splitlines()
    found = []
    for number, text in enumerate(texts, start=1):
        try:
            values = json.loads(text)
            float(values["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(texts):
                break
            way_out = "restore the file or remove that line"
            raise DataError(f"{log} line {number} is not a JSON object with a step; {way_out}.") from None
        found.append(values)
    return found


def _rank(name: str) -> int:
    return 0 if name == "loss" else 1 if name.startswith("eval/") else 2


def _title(name: str) -> tuple[str, str]:
    """The curve that a number belongs to, and the name of its line there."""
    for masks in ("slots", "decoder"):
        if name.startswith(f"eval/{masks} "):
            return name.replace(f"{masks} ", "", 1), masks
    return name, name


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, moved apart where they (nearly) agree, so that a scale can be drawn."""
    low, high = min(values), max(values)
    room = 1e-6 * max(abs(low), abs(high), 1e-6)
    return (low, high) if high - low > room else (low - max(abs(low), 1) / 2, high + max(abs(high), 1) / 2)


def _place(value: float, scale: Sequence[float], start: float, end: float) -> float:
    return start + (value - scale[0]) / (scale[-1] - scale[0]) * (end - start)


def _thin(line: Line) -> Line:
    """Every n-th point and the last."""
    stride = math.ceil(len(line) / MOST_POINTS)
    return line if stride == 1 else [*line[:-1:stride], line[-1]]


def _axes(across: Sequence[float], up: Sequence[float], name: str) -> list[str]:
    parts = []
    for value in up:
        y = _place(value, up, HEIGHT - BOTTOM, TOP)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e6ec"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for value in across:
        x = _place(value, across, LEFT, WIDTH - RIGHT)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.6g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(name)}</text>')
    return parts
