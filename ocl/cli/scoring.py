"""Scores, panels and reports of a model: what `ocl train`, `ocl evaluate` and `ocl demo` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from ocl.cli.experiment import Experiment
from ocl.data import Dataset
from ocl.evaluate.curves import read_curves
from ocl.evaluate.discovery import Discovery, evaluate, score_baselines
from ocl.evaluate.report import Picture, Section, environment, write_report
from ocl.evaluate.tables import print_tables, score_tables
from ocl.models import SlotAutoencoder
from ocl.vis.panels import panel
from ocl.vis.png import write_png

PANEL_ROWS = 8
MASKS = {"slots": "slot masks", "decoder": "decoder masks"}


def held_out_evaluation(
    experiment: Experiment, run: Path, device: torch.device
) -> Callable[[nn.Module, int], Mapping[str, float]] | None:
    """What training calls now and then: score the held-out images, write RUN/panels/step-00001000.png. None without any."""
    held_out = experiment.held_out()
    if held_out is None:
        return None

    def score(model: nn.Module, step: int) -> Mapping[str, float]:
        found = evaluate(cast(SlotAutoencoder, model), held_out, device=device, num_examples=PANEL_ROWS)
        write_png(run / "panels" / f"step-{step:08d}.png", panel(found.examples))
        return {"error": found.error, **flat_scores(found)}

    return score


def flat_scores(found: Discovery) -> dict[str, float]:
    """"decoder mBO_i[coda]" -> value, for everything that could be scored."""
    return {f"{masks} {name}": value for masks, scores in found.scores.items() for name, value in scores.items() if value == value}


def report(
    model: SlotAutoencoder,
    data: Dataset,
    folder: Path,
    *,
    title: str,
    summary: str,
    protocols: Sequence[str],
    device: torch.device,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    with_baselines: bool = True,
    earlier: Mapping[str, Mapping[str, float]] | None = None,
    log: Path | None = None,
    configuration: str = "",
    more: Sequence[Picture] = (),
    sections: Sequence[Section] = (),
) -> tuple[Discovery, dict[str, dict[str, float]]]:
    """Score a model and the trivial baselines, print the tables, write FOLDER/report.html, scores.json and panel.png.

    earlier: scores of our own that were found before, by the name of their row.
    """
    total = len(data) if limit is None else min(limit, len(data))
    with Progress(transient=True) as bar:
        task = bar.add_task("scoring the model", total=total)
        found = evaluate(model, data, protocols=protocols, batch_size=batch_size, limit=limit, seed=seed, device=device,
                         num_examples=PANEL_ROWS, progress=lambda done: bar.update(task, completed=done))
        baselines: dict[str, dict[str, float]] = {}
        if with_baselines:
            bar.reset(task, total=total, description="scoring the baselines")
            baselines = score_baselines(data, protocols=protocols, limit=limit, seed=seed,
                                        progress=lambda done: bar.update(task, completed=done))
    ours = {MASKS[masks]: scores for masks, scores in found.scores.items()}
    tables = score_tables({**ours, **(earlier or {})}, baselines, caption=f"{found.images} images; higher is better.")
    console = Console()
    print_tables(tables, console if console.is_terminal else Console(width=160))  # a file has no width to fit into
    picture = panel(found.examples)
    write_png(folder / "panel.png", picture)
    write_report(
        folder / "report.html",
        title=title,
        summary=summary,
        tables=tables,
        panels=[Picture(picture, "Held-out images: each row one image, each colour one slot."), *more],
        sections=sections,
        curves=read_curves(log) if log is not None and log.is_file() else (),
        configuration=configuration,
        notes=environment() | {"Data": f"{type(data).__name__}, {found.images} images"},
    )
    return found, baselines
