"""Results on disk: ops.json of one machine, whose rows a later run of the same cases replaces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocl.vis.png import write_whole

NAME = "ops.json"


class Store:
    """`put` a row and it is on disk, so that a run that is cut short loses nothing."""

    def __init__(self, folder: Path, *, start_over: bool) -> None:
        self.path = folder / NAME
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists() and not start_over:
            self.rows = {identity(row): row for row in json.loads(self.path.read_text())["rows"]}

    def put(self, row: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        self.rows[identity(row)] = _rounded(dict(row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, _text(header, list(self.rows.values())).encode())


def identity(row: Mapping[str, Any]) -> str:
    return f"{row['key']} threads={row['threads']}"


def _text(header: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """One row a line, so that a difference shows which rows changed."""
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    return json.dumps(_rounded(dict(header)), indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'


def _rounded(value: Any) -> Any:
    """Four digits are more than a clock gives; infinity, which JSON lacks, is written as text."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) != float("inf") else "infinite"
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list | tuple) else value
