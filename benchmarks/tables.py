"""Results as Markdown and pictures: README.md of all machines, and what one machine's operators fill a page of their own with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.ops import goals, plot, report

OPS = "ops.json"


def write(folder: Path) -> list[Path]:
    """Page and pictures of a folder's ops.json, and README.md where the folder is one of the kept results."""
    result = json.loads((folder / OPS).read_text())
    plots = plot.draw(result, folder)
    (folder / "ops.md").write_text(report.markdown(result, plots))
    written = [folder / OPS, folder / "ops.md", *(folder / name for name in plots)]
    if folder.resolve().parent == RESULTS:
        written.append(write_readme())
    return written


def write_readme() -> Path:
    path = RESULTS / "README.md"
    path.write_text(readme({path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/*.json"))}))
    return path


def readme(results: Mapping[Path, Mapping[str, Any]]) -> str:
    """Every kept result as Markdown."""
    parts = ["# Results\n", "Written by `python -m benchmarks`; each ratio was measured in one run.\n"]
    for path, result in results.items():
        parts += _operators(path, result) if path.name == OPS else _rows(path, result)
    if not any(result.get("device", "cpu") != "cpu" for result in results.values()):
        parts += ["## GPU\n", "No benchmark above has run on a GPU yet; `make bench-gpu` runs those that can.\n"]
        parts += [report.markdown_goals(goals.judge([], "cuda")), ""]
    return "\n".join(parts)


def _operators(path: Path, result: Mapping[str, Any]) -> Iterator[str]:
    folder = path.parent.name
    yield f"## {path.stem}, {folder}\n"
    yield f"{report.source(result)} [Every row]({folder}/ops.md).\n"
    yield from (f"![{picture.stem}]({folder}/{picture.name})\n" for picture in sorted(path.parent.glob("ops-*.png")))
    yield report.markdown_goals(report.goals_of(result))
    yield ""


def _rows(path: Path, result: Mapping[str, Any]) -> Iterator[str]:
    made, rows = result["environment"], result["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield f"## {path.stem}, {made['hardware']}\n"
    yield f"`{result['command']}`, commit {made['commit']}, torch {made['torch']}, {made['date']}.\n"
    yield "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    yield from ("| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows)
    yield ""


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
