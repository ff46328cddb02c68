"""Training curves."""

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocl.errors import DataError
from ocl.evaluate.curves import Curve, curve_html, read_curves, ticks

VALUES = st.floats(-1e9, 1e9)


def _points(curve):
    root = ElementTree.fromstring(curve_html(curve))
    lines = [line.attrib["points"] for line in root.iter("polyline")]
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_every_number_of_the_log_becomes_a_curve(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 10, "lr": 1, "loss": 0.5, "samples": 80, "skipped": 0}\n'
        '{"step": 20, "lr": 2, "loss": null, "eval/slots FG-ARI[coda]": 0.5, "samples": 160, "skipped": 0}\n'
        '{"step": 30, "lr": 1, "loss": 0.25, "eval/slots FG-ARI[coda]": 0.75, "note": "text"}\n'
        '{"step": 40, "lo'
    )
    curves = read_curves(log)
    assert [(curve.title, dict(curve.lines)) for curve in curves] == [
        ("loss", {"loss": [(10, 0.5), (30, 0.25)]}),
        ("eval/FG-ARI[coda]", {"slots": [(20, 0.5), (30, 0.75)]}),
        ("lr", {"lr": [(10, 1), (20, 2), (30, 1)]}),
    ]


def test_slot_and_decoder_masks_share_a_curve(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = (f'{{"step": {step}, "eval/decoder mBO": {step}, "eval/slots mBO": 0.{step}}}' for step in (1, 2))
    log.write_text("\n".join(lines))
    (curve,) = read_curves(log)
    assert curve.title == "eval/mBO" and set(curve.lines) == {"slots", "decoder"}


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1}', '{"step": null}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 1}\n' + line + '\n{"step": 3, "loss": 1}\n')
    with pytest.raises(DataError, match="line 2"):
        read_curves(log)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=30))
def test_every_point_lies_inside_the_drawing(line):
    for x, y in _points(Curve("loss", {"loss": sorted(line)}))[0]:
        assert 0 <= x <= 400 and 0 <= y <= 220


def test_higher_values_are_drawn_higher_and_later_steps_further_right():
    (line,) = _points(Curve("score", {"score": [(0, 0.1), (1, 0.9), (2, 0.5)]}))
    assert line[0][0] < line[1][0] < line[2][0]
    assert line[1][1] < line[2][1] < line[0][1]


def test_a_long_line_is_thinned_and_keeps_its_ends():
    (line,) = _points(Curve("loss", {"loss": [(step, step) for step in range(100_001)]}))
    assert len(line) <= 402
    assert line[0] == (52, 186) and line[-1] == (386, 12)


@settings(deadline=None, max_examples=100)
@given(VALUES, st.floats(1e-3, 1e9))
def test_ticks_span_the_values_and_are_few(low, extent):
    marks = ticks(low, low + extent)
    slack = 1e-6 * max(abs(low), extent)
    assert marks[0] <= low + slack and marks[-1] >= low + extent - slack
    assert 2 <= len(marks) <= 7
    assert all(math.isfinite(mark) for mark in marks)


def test_ticks_are_round_numbers():
    assert ticks(0, 0.83) == pytest.approx([0, 0.5, 1])
    assert ticks(0, 4000) == [0, 1000, 2000, 3000, 4000]


def test_titles_and_names_are_escaped():
    html = curve_html(Curve("<b>", {"<i>": [(0, 1)], "b": [(0, 2)]}))
    assert "<b>" not in html and "<i>" not in html and "&lt;b&gt;" in html
