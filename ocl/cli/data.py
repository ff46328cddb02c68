"""`ocl data preview | check`: look at a dataset, or read all of it and list what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from ocl.cli import experiment as experiments
from ocl.cli.options import command
from ocl.data import Dataset
from ocl.data.check import check_dataset
from ocl.models.names import instantiate
from ocl.vis.png import write_png
from ocl.vis.sheet import contact_sheet


def main(argv: Sequence[str]) -> int:
    options = command("data", "Preview or check (named first) a dataset: --data Scenes --data.level textured, or --config.")
    options.add_argument("action", choices=["preview", "check"])
    options.add_argument("--out", type=Path, default=Path("preview.png"), help="PNG that `preview` writes")
    options.add_argument("--limit", type=int, help="images to look at; default 24 for preview, all for check")
    known, words = options.parse_known_args(argv)
    data = read_data(words, prog="ocl data", packages=known.packages)
    if known.action == "preview":
        write_png(known.out, contact_sheet(data, limit=known.limit or 24))
        print(known.out)
        return 0
    report = check_dataset(data, limit=known.limit)
    print(report)
    return 0 if report.sound else 1


def read_data(words: Sequence[str], *, prog: str, packages: Sequence[str] = ()) -> Dataset:
    """The dataset that `--data CLASS --data.option value ...` names."""
    parser = ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file with a `data` key")
    parser.add_argument("--data", type=Dataset, required=True)
    config = experiments.parse(parser, words, packages=packages)
    return instantiate(parser, config).data
