"""`ocl evaluate RUN --data VOCInstances --data.root voc --protocol coda spot`: a table, scores.json and an HTML report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ocl.cli.data import read_data
from ocl.cli.experiment import read_run
from ocl.cli.options import add_device, command, device, results
from ocl.cli.scoring import report
from ocl.errors import ConfigError
from ocl.metrics import PROTOCOLS
from ocl.train import load_model
from ocl.vis.png import write_whole


def main(argv: Sequence[str]) -> int:
    options = command("evaluate", "Score a run (named first) on its held-out set, or on what --data CLASS --data.option names.")
    options.add_argument("run", type=Path, help="run folder or checkpoint that `ocl train` wrote")
    options.add_argument("--protocol", nargs="+", default=["coda"], choices=sorted(PROTOCOLS), metavar="NAME",
                         help=f"how scores are computed: {', '.join(sorted(PROTOCOLS))}")
    options.add_argument("--out", type=Path, help="folder to write; default RUN/evaluation")
    options.add_argument("--limit", type=int, help="score only the first images")
    options.add_argument("--batch_size", type=int, default=32)
    options.add_argument("--seed", type=int, default=0, help="of the slot noise; an image's score does not depend on its batch")
    options.add_argument("--no_baselines", action="store_true", help="leave out grids, random segments and colour k-means")
    options.add_argument("--no_ema", action="store_true", help="score the weights themselves, not their moving average")
    add_device(options)
    known, words = options.parse_known_args(argv)
    experiment = read_run(known.run, prog="ocl evaluate", packages=known.packages)
    model = experiment.model()
    found = load_model(known.run, model, ema=not known.no_ema)
    data = read_data(words, prog="ocl evaluate", packages=known.packages) if words else experiment.held_out()
    if data is None:
        raise ConfigError(f"{known.run} has no held_out data in its config; pass --data CLASS --data.option VALUE ...")
    place, folder = device(known.device), known.out or results(known.run, "evaluation")
    discovery, _ = report(
        model, data, folder,
        title=f"{known.run.name}, step {found.step}, on {type(data).__name__}",
        summary="Scores of slot masks and decoder masks beside segmenters that learn nothing.",
        protocols=known.protocol, device=place, limit=known.limit, seed=known.seed, batch_size=known.batch_size,
        with_baselines=not known.no_baselines, log=known.run / "log.jsonl", configuration=experiment.text,
    )
    table = "".join(json.dumps(row) + "\n" for row in discovery.table)
    write_whole(folder / "images.jsonl", table.encode())
    print(f"{folder / 'report.html'}, {folder / 'scores.json'}, {folder / 'images.jsonl'}")
    return 0
