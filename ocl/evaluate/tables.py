"""Tables of scores: the same rows for a terminal, a page and a JSON file. Every column names its protocol: mBO_i[coda]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ocl.evaluate.html import tag, wrap

Scores = Mapping[str, float]  # column -> value; NaN or absent where it could not be scored


@dataclass(frozen=True)
class Table:
    """Named rows of scores, higher is better. ours: the rows to set off from the baselines."""

    title: str
    rows: Mapping[str, Scores]
    ours: frozenset[str] = frozenset()
    caption: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that some row fills, in order of appearance."""
        return tuple(dict.fromkeys(column for scores in self.rows.values() for column in scores))

    def cell(self, row: str, column: str) -> str:
        """The score with three decimals, or a dash."""
        value = self.rows[row].get(column, math.nan)
        return "-" if math.isnan(value) else f"{value:z.3f}"

    def is_best(self, row: str, column: str) -> bool:
        """Whether no row of this column shows a higher number; equal ones are all best."""
        values = [scores.get(column, math.nan) for scores in self.rows.values()]
        own, known = self.rows[row].get(column, math.nan), [value for value in values if not math.isnan(value)]
        return not math.isnan(own) and f"{own:.3f}" == f"{max(known):.3f}"


def score_tables(ours: Mapping[str, Scores], baselines: Mapping[str, Scores], *, caption: str = "") -> list[Table]:
    """One table per protocol, the part in brackets of a score's name; our rows first, then the baselines."""
    rows = {**ours, **baselines}
    names = dict.fromkeys(_protocol(column) for scores in rows.values() for column in scores)

    def part(name: str) -> Table:
        own = {row: {key: value for key, value in scores.items() if _protocol(key) == name} for row, scores in rows.items()}
        return Table(f"Scores under the protocol {name}" if name else "Other numbers", own, frozenset(ours), caption)

    return [part(name) for name in names]


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print to a terminal; the best of each column is bold. Columns that do not fit beside each other follow below."""
    console = console or Console()
    for table in tables:
        console.print(Text(table.title, "bold"))
        for columns in _fitting(table, console.width):
            console.print(_rich_table(table, columns))
        console.print(Text(table.caption))


def table_html(table: Table) -> str:
    """The table as HTML; the best of each column is bold, our rows are shaded."""
    head = wrap("thead", wrap("tr", tag("th", "") + "".join(tag("th", column) for column in table.columns)))
    rows = []
    for row in table.rows:
        cells = [
            wrap("td", tag("strong" if table.is_best(row, column) else "span", table.cell(row, column)))
            for column in table.columns
        ]
        rows.append(wrap("tr", tag("td", row) + "".join(cells), class_="ours" if row in table.ours else "baseline"))
    caption = tag("caption", table.caption) if table.caption else ""
    return wrap("div", wrap("table", caption + head + wrap("tbody", "".join(rows))), class_="scroll")


def table_markdown(table: Table) -> str:
    """The table in Markdown with its caption; the best of each column is bold."""
    lines = [["", *table.columns], ["---", *["---:"] * len(table.columns)]]
    for row in table.rows:
        cells = [(table.cell(row, column), table.is_best(row, column)) for column in table.columns]
        lines.append([row, *(f"**{text}**" if best else text for text, best in cells)])
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{drawn}\n\n{table.caption}" if table.caption else drawn


def table_json(table: Table) -> dict[str, Any]:
    """The table as plain values for JSON; a score that could not be computed is null."""
    rows = {
        row: {column: None if math.isnan(value) else value for column, value in scores.items()}
        for row, scores in table.rows.items()
    }
    return {"title": table.title, "caption": table.caption, "ours": sorted(table.ours), "rows": rows}


def _rich_table(table: Table, columns: Sequence[str]) -> RichTable:
    shown = RichTable(box=SIMPLE, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for column in columns:
        shown.add_column(Text(_heading(column)), justify="right", no_wrap=True)
    for row in table.rows:
        cells = [Text(table.cell(row, column), "bold" if table.is_best(row, column) else "") for column in columns]
        shown.add_row(Text(row, "cyan" if row in table.ours else ""), *cells)
    return shown


def _fitting(table: Table, width: int) -> list[list[str]]:
    """The columns in groups that fit beside the names of the rows; at least one in each."""
    groups: list[list[str]] = []
    left = 0
    for column in table.columns:
        needed = 2 + max(map(len, [*_heading(column).split("\n"), *(table.cell(row, column) for row in table.rows)]))
        if needed > left:
            groups.append([])
            left = width - max(map(len, table.rows)) - 3
        groups[-1].append(column)
        left -= needed
    return groups


def _heading(column: str) -> str:
    return column.replace("[", "\n[")


def _protocol(column: str) -> str:
    return column.partition("[")[2].rstrip("]")
