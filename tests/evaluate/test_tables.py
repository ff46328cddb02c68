"""Tables of scores."""

import json
import math

import pytest
from rich.console import Console

from ocl.evaluate.tables import Table, print_tables, score_tables, table_html, table_json, table_markdown

OURS = {"slots": {"FG-ARI[coda]": 0.9, "mBO_i[coda]": 0.5, "mBO_i[oclf]": 0.51}}
BASELINES = {"grid": {"FG-ARI[coda]": 0.61, "mBO_i[coda]": 0.5004, "mBO_i[oclf]": math.nan}}


def _printed(tables, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tables(tables, console)
    return console.export_text()


def test_one_table_per_protocol_with_the_protocol_in_every_heading():
    tables = score_tables(OURS, BASELINES)
    assert [table.columns for table in tables] == [("FG-ARI[coda]", "mBO_i[coda]"), ("mBO_i[oclf]",)]
    assert [list(table.rows) for table in tables] == [["slots", "grid"]] * 2


def test_the_best_is_judged_by_what_is_shown():
    coda, oclf = score_tables(OURS, BASELINES)
    assert coda.is_best("slots", "FG-ARI[coda]") and not coda.is_best("grid", "FG-ARI[coda]")
    assert coda.is_best("slots", "mBO_i[coda]") and coda.is_best("grid", "mBO_i[coda]")  # both show 0.500
    assert oclf.is_best("slots", "mBO_i[oclf]") and not oclf.is_best("grid", "mBO_i[oclf]")


def test_a_score_that_does_not_exist_is_a_dash_and_null():
    table = score_tables(OURS, BASELINES)[1]
    assert table.cell("grid", "mBO_i[oclf]") == "-"
    assert json.loads(json.dumps(table_json(table), allow_nan=False))["rows"]["grid"] == {"mBO_i[oclf]": None}


def test_a_column_where_nothing_was_scored_has_no_best():
    table = Table("t", {"a": {"x[coda]": math.nan}, "b": {}})
    assert not table.is_best("a", "x[coda]") and "strong" not in table_html(table)


@pytest.mark.parametrize("width", [48, 80, 200])
def test_the_terminal_shows_every_name_and_number_at_any_width(width):
    names = ("FG-ARI", "ARI", "mBO_i", "mIoU_i", "FG-mIoU_i", "mBO_c", "mIoU_c", "FG-mIoU_c")
    scores = {f"{name}[slotdiffusion]": 0.1 + index / 100 for index, name in enumerate(names)}
    text = _printed(score_tables({"this model, decoder masks": scores}, {"[red]markup": {}}), width=width)
    numbers = [f"{value:.3f}" for value in scores.values()]
    for word in ("this model, decoder masks", "[red]markup", "[slotdiffusion]", *names, *numbers):
        assert word in text
    assert max(map(len, text.splitlines())) <= width


def test_a_table_is_written_in_markdown_with_the_best_in_bold():
    table = Table("T", {"a": {"x": 0.5, "y": math.nan}, "b": {"x": 0.25, "y": 1.0}}, caption="Two rows.")
    assert table_markdown(table).splitlines() == [
        "|  | x | y |", "| --- | ---: | ---: |", "| a | **0.500** | - |", "| b | 0.250 | **1.000** |", "", "Two rows.",
    ]  # fmt: skip
