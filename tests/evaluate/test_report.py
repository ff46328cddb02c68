"""The report of an evaluation."""

import base64
import io
import json
import math
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from ocl.evaluate.curves import Curve
from ocl.evaluate.report import Picture, environment, write_report
from ocl.evaluate.tables import score_tables

SCORES = {"slots": {"FG-ARI[coda]": 0.8123456, "mBO_i[coda]": 0.6543217}}
BASELINES = {"grid 2x2": {"FG-ARI[coda]": 0.6, "mBO_i[coda]": math.nan}}
HOSTILE = "</pre><script>alert('x')</script> & \"quotes\" <img src=http://example.invalid/x>"


class _Reader(HTMLParser):
    """Collects elements and text, and checks that elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _read(path):
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def _write(path, text="plain"):
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    return write_report(
        path,
        title=text,
        summary=text,
        tables=score_tables(SCORES, BASELINES | {text: {}}, caption=text),
        panels=[Picture(picture, text)],
        curves=[Curve(text, {text: [(0, 1.0), (10, 0.5)]})],
        configuration=text,
        notes={text: text, **environment(["/somewhere/bin/ocl", "evaluate", "a run"])},
    )


def test_the_report_is_well_formed_and_shows_every_number(tmp_path):
    _write(tmp_path / "report.html")
    page = _read(tmp_path / "report.html")
    for word in ("0.812", "0.654", "0.600", "FG-ARI[coda]", "mBO_i[coda]", "grid 2x2", "ocl evaluate 'a run'"):
        assert word in page.text
    assert [name for name, _ in page.elements].count("svg") == 1


def test_the_report_needs_no_other_file_and_no_script(tmp_path):
    _write(tmp_path / "report.html", HOSTILE)
    page = _read(tmp_path / "report.html")
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in page.elements}
    sources = [value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)


def test_every_text_is_escaped_and_still_readable(tmp_path):
    _write(tmp_path / "report.html", HOSTILE)
    page = _read(tmp_path / "report.html")
    assert page.text.count(HOSTILE) >= 8
    assert json.loads((tmp_path / "scores.json").read_text())["title"] == HOSTILE


def test_the_pictures_are_inside_and_exact(tmp_path):
    _write(tmp_path / "report.html")
    (source,) = [attributes["src"] for name, attributes in _read(tmp_path / "report.html").elements if name == "img"]
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert np.array_equal(picture, np.arange(60, dtype=np.uint8).reshape(4, 5, 3))


def test_the_scores_beside_it_are_exact_and_strict_json(tmp_path):
    path = _write(tmp_path / "report.html")
    found = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert path == tmp_path / "scores.json"
    rows = found["tables"][0]["rows"]
    assert rows["slots"] == SCORES["slots"] and rows["grid 2x2"] == {"FG-ARI[coda]": 0.6, "mBO_i[coda]": None}


def test_empty_sections_are_left_out(tmp_path):
    write_report(tmp_path / "deep" / "report.html", title="bare")
    assert "h2" not in {name for name, _ in _read(tmp_path / "deep" / "report.html").elements}


def test_the_environment_tells_command_versions_and_hardware():
    notes = environment()
    assert set(notes) == {"Command", "Date", "Versions", "Processor", "Accelerator"}
    assert "torch" in notes["Versions"] and all(notes.values())
