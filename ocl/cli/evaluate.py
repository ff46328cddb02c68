"""`ocl evaluate RUN --data VOCInstances --data.root voc --protocol coda spot`: a table, scores.json and an HTML report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import Progress

from ocl.cli.data import read_data
from ocl.cli.options import add_device, command, device, results
from ocl.cli.scoring import report
from ocl.cli.trained import source
from ocl.data import Dataset
from ocl.errors import ConfigError
from ocl.evaluate.analysis import analyse
from ocl.evaluate.analysis_report import section, summary, write_plots
from ocl.evaluate.report import Section
from ocl.metrics import PROTOCOLS
from ocl.models import SlotAutoencoder
from ocl.vis.png import write_png, write_whole


def main(argv: Sequence[str]) -> int:
    options = command("evaluate", "Score a run (named first) on its held-out set, or on what --data CLASS --data.option names.")
    options.add_argument("run", type=Path, help="run folder or checkpoint that `ocl train` wrote, or a folder in the hub's layout")
    options.add_argument("--protocol", nargs="+", default=["coda"], choices=sorted(PROTOCOLS), metavar="NAME",
                         help=f"how scores are computed: {', '.join(sorted(PROTOCOLS))}")
    options.add_argument("--out", type=Path, help="folder to write; default RUN/evaluation")
    options.add_argument("--limit", type=int, help="score only the first images")
    options.add_argument("--batch_size", type=int, default=32)
    options.add_argument("--seed", type=int, default=0, help="of the slot noise; an image's score does not depend on its batch")
    options.add_argument("--no_baselines", action="store_true", help="leave out grids, random segments and colour k-means")
    options.add_argument("--no_ema", action="store_true", help="score the weights themselves, not their moving average")
    options.add_argument("--analysis", action="store_true",
                         help="also look into a latent-diffusion decoder: attention, entanglement and information of its slots")
    options.add_argument("--analysis_images", type=int, default=8, help="how many of the first images it looks at")
    options.add_argument("--analysis_timesteps", type=int, default=8, help="noise levels, at equal distances of log-SNR")
    options.add_argument("--analysis_steps", type=int, default=20, help="steps of the sampler that draws from slots")
    options.add_argument("--analysis_guidance", type=float, default=2.0, help="of that sampler; 1 for none")
    add_device(options)
    known, words = options.parse_known_args(argv)
    origin = source(known.run, prog="ocl evaluate", packages=known.packages)
    model, name = origin.load(ema=not known.no_ema)
    held_out = None if words or origin.experiment is None else origin.experiment.held_out()
    data = read_data(words, prog="ocl evaluate", packages=known.packages) if words else held_out
    if data is None:
        raise ConfigError(f"{known.run} has no held_out data in its config; pass --data CLASS --data.option VALUE ...")
    place, folder = device(known.device), known.out or results(known.run, "evaluation")
    sections = [look_inside(model, data, known, folder, place)] if known.analysis else []
    discovery, _ = report(
        model, data, folder,
        title=f"{name}, on {type(data).__name__}",
        summary="Scores of slot masks and decoder masks beside segmenters that learn nothing.",
        protocols=known.protocol, device=place, limit=known.limit, seed=known.seed, batch_size=known.batch_size,
        with_baselines=not known.no_baselines, log=known.run / "log.jsonl", configuration=origin.text,
        sections=sections,
    )
    table = "".join(json.dumps(row) + "\n" for row in discovery.table)
    write_whole(folder / "images.jsonl", table.encode())
    print(f"{folder / 'report.html'}, {folder / 'scores.json'}, {folder / 'images.jsonl'}")
    return 0


def look_inside(
    model: SlotAutoencoder, data: Dataset, options: argparse.Namespace, folder: Path, place: torch.device
) -> Section:
    """Analyse the decoder, write FOLDER/analysis.json and plots below FOLDER/analysis, and return the report's section."""
    with Progress(transient=True) as bar:
        task = bar.add_task("looking into the decoder", total=options.analysis_images)
        found = analyse(
            model, data, images=options.analysis_images, timesteps=options.analysis_timesteps, steps=options.analysis_steps,
            guidance=options.analysis_guidance, batch_size=min(options.batch_size, 8), seed=options.seed, device=place,
            progress=lambda done: bar.update(task, completed=done),
        )  # fmt: skip
    shown = section(found)
    write_whole(folder / "analysis.json", (json.dumps(summary(found), allow_nan=False) + "\n").encode())
    for number, picture in enumerate(shown.pictures):
        write_png(folder / "analysis" / f"drawings_{number}.png", picture.picture)
    if not write_plots(found, folder / "analysis"):
        print("no plots in PNG, for want of matplotlib (pip install matplotlib); the report has them as curves")
    print("\n".join([*shown.paragraphs, f"{folder / 'analysis.json'}, {folder / 'analysis'}"]))
    return shown
