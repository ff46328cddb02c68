"""Pictures of results: how many times faster ours is than each provider, a panel per table, a line per shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ops.report import groups, shape, title

ROW_HEIGHT, PANEL_EXTRA, WIDTH, ACROSS = 0.24, 0.95, 6.2, 2  # inches, panels side by side
MARKS = "os^vDPX*<>hd"


def draw(result: Mapping[str, Any], folder: Path) -> list[str]:
    """One PNG per operator; their names, or none where matplotlib is not installed (pip install "ocl[dev]")."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    written = []
    for op in dict.fromkeys(row["op"] for row in result["rows"]):
        panels = [rows for rows in groups([row for row in result["rows"] if row["op"] == op]).values() if _points(rows)]
        if panels:
            name = f"ops-{op}.png"
            _figure(panels, f"{op.replace('_', ' ')} on {result['environment']['hardware']}").savefig(folder / name, dpi=90)
            written.append(name)
    return written


def _points(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, int]]]:
    """Provider -> (ratio, line) for each row where both it and ours were timed."""
    points: dict[str, list[tuple[float, int]]] = {}
    for line, row in enumerate(rows):
        ours = row["providers"].get("ours", {}).get("median")
        for name, found in row["providers"].items():
            if ours and name != "ours" and "median" in found:
                points.setdefault(name, []).append((found["median"] / ours, line))
    return points


def _figure(panels: Sequence[Sequence[Mapping[str, Any]]], heading: str) -> Any:
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for rows in panels for name in _points(rows)))
    style = {name: _mark(number) for number, name in enumerate(names)}
    bands = [panels[start : start + ACROSS] for start in range(0, len(panels), ACROSS)]
    heights = [PANEL_EXTRA + ROW_HEIGHT * max(len(rows) for rows in band) for band in bands]
    figure, axes = plt.subplots(
        len(bands), ACROSS, squeeze=False, layout="constrained", figsize=(WIDTH * ACROSS, sum(heights) + 0.9),
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for axis in axes.flat:
        axis.set_visible(False)
    for band, line in zip(bands, axes, strict=True):
        for rows, axis in zip(band, line, strict=False):
            _panel(axis, rows, style)
    handles = [plt.Line2D([], [], linestyle="", label=name, **marks) for name, marks in style.items()]
    figure.suptitle(f"{heading}: time of each provider over ours (right of 1: ours is faster)")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False)
    plt.close(figure)
    return figure


def _mark(number: int) -> dict[str, Any]:
    return {"marker": MARKS[number % len(MARKS)], "color": f"C{number % 10}"}


def _panel(axis: Any, rows: Sequence[Mapping[str, Any]], style: Mapping[str, Any]) -> None:
    points = _points(rows)
    axis.set_visible(True)
    axis.set_title(title(rows[0]).partition(", ")[2], fontsize=9, loc="left")
    axis.axvline(1.0, color="0.4", linewidth=1)
    for name, found in points.items():
        axis.plot([ratio for ratio, _ in found], [line for _, line in found], linestyle="", markersize=6, alpha=0.85, **style[name])
    ratios = [ratio for found in points.values() for ratio, _ in found]
    axis.set_xscale("log", base=2)
    low, high = math.floor(math.log2(min(0.8, *ratios))), math.ceil(math.log2(max(2.0, *ratios)))
    axis.set_xlim(2.0 ** (low - 0.2), 2.0 ** (high + 0.2))
    ticks = [2.0**power for power in range(low, high + 1, max(1, (high - low) // 6))]
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set_yticks(range(len(rows)), [shape(row) for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="x", color="0.9")
    axis.grid(axis="y", color="0.95")
    axis.set_axisbelow(True)
