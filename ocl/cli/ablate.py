"""`ocl ablate CONFIG --rows FOLDER --run RUN`: one config in several variants, each trained and scored, as one table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ocl.cli import experiment as experiments
from ocl.cli.experiment import Experiment
from ocl.cli.options import add_device, command, device, existing
from ocl.cli.scoring import MASKS
from ocl.cli.train import claim, train
from ocl.cli.trained import trained_model
from ocl.errors import CheckpointError, ConfigError, RangeError
from ocl.evaluate.discovery import evaluate
from ocl.evaluate.report import environment
from ocl.evaluate.tables import Table, print_tables, score_tables, table_json, table_markdown
from ocl.metrics import PROTOCOLS
from ocl.train.files import replace_text

SCORES = "ablation.json"  # in the run folder of a row, and of the whole table beside them
EPILOG = """
Every file of --rows changes the config as a second `ocl train --config` would; its name is the name of the row. Stopped and
started again, the command goes on where it was: a row that is finished is neither trained nor scored again. A row whose
training breaks down (a loss that is not finite) is listed as such, and the others go on.
"""


@dataclass(frozen=True)
class Scoring:
    """How every row is scored; a row that was scored otherwise is scored again."""

    protocols: tuple[str, ...]
    limit: int | None
    seed: int


def main(argv: Sequence[str]) -> int:
    options = command("ablate", "Train and score variants of a config, as one table. Further options are those of the config.")
    options.epilog = EPILOG
    options.add_argument("config", type=Path, help="YAML file that all rows share")
    options.add_argument("--rows", nargs="+", type=Path, required=True, help="YAML files, or a folder of them, one per row")
    options.add_argument("--run", type=Path, required=True, help="folder to write: a run per row, ablation.md, ablation.json")
    options.add_argument("--protocol", nargs="+", default=["coda"], choices=sorted(PROTOCOLS), metavar="NAME")
    options.add_argument("--limit", type=int, help="score only the first held-out images")
    options.add_argument("--seed", type=int, default=0, help="of the slot noise while scoring; --training.seed is that of training")
    add_device(options)
    known, words = options.parse_known_args(argv)
    scoring = Scoring(tuple(known.protocol), known.limit, known.seed)
    rows = {path.stem: _read_row(known.config, path, words, known.packages) for path in row_files(known.rows)}
    found: dict[str, Mapping[str, Any]] = {}
    for name, experiment in rows.items():
        print(f"row {name} ({len(found) + 1} of {len(rows)})")
        with _naming(name, experiment):
            scored = run_row(experiment, known.run / name, scoring, on=known.device)
        if scored is None:
            return 130
        found[name] = scored
    text = shlex.join(["ocl", "ablate", *argv])
    write_table(known.run, found, title=f"Ablation of {known.config}", command_line=text, device=str(device(known.device)))
    return 0


def row_files(given: Sequence[Path]) -> list[Path]:
    """The files themselves, and those of folders by name. Raises ConfigError for none, or for two of one name."""
    paths = [existing(path, "a YAML file or a folder of them") for path in given]
    files = [file for path in paths for file in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]
    names = [file.stem for file in files]
    if not files or len(set(names)) < len(names):
        listed = ", ".join(map(str, given))
        raise ConfigError(f"--rows {listed} holds {len(files)} YAML files of {len(set(names))} names; pass one file for each row.")
    return files


def run_row(experiment: Experiment, run: Path, scoring: Scoring, *, on: str) -> Mapping[str, Any] | None:
    """Train and score one row into `run`, or read what was found before. None where the user stopped it."""
    path = run / SCORES
    wanted = {"steps": experiment.training.steps, **asdict(scoring), "protocols": list(scoring.protocols)}
    if path.is_file():
        claim(run, experiment.text, resume=True)
        earlier: Mapping[str, Any] = json.loads(path.read_text())
        if wanted.items() <= earlier.items():
            return earlier
    try:
        if train(experiment, run, resume=True, on=on).stopped_by is not None:
            return None
    except RangeError as error:  # the next attempt would meet it again: its draws follow from the seed
        return {**wanted, "failed": str(error), "scores": {}} | _budget(experiment)
    found = {**wanted, **_score(experiment, run, scoring, on)} | _budget(experiment)
    replace_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def write_table(run: Path, rows: Mapping[str, Mapping[str, Any]], *, title: str, command_line: str, device: str) -> None:
    """Print the table, and write RUN/ablation.md and RUN/ablation.json."""
    scores = {
        name if masks == "slots" else f"{name}, {MASKS[masks]}": values
        for name, row in rows.items()
        for masks, values in (row["scores"] or {"slots": {}}).items()
    }
    tables = score_tables(scores, {}, caption=_caption(rows)) or [Table("No row could be scored", scores, caption=_caption(rows))]
    print_tables(tables, Console(width=max(100, Console().width)))
    notes = environment() | {"Command": command_line, "Device": device}
    failed = {name: str(row["failed"]) for name, row in rows.items() if "failed" in row}
    lines = [f"# {title}", *(f"## {table.title}\n\n{table_markdown(table)}" for table in tables)]
    lines += [f"{name} broke down: {reason}" for name, reason in failed.items()]
    lines.append("\n".join(f"- {name}: {text}" for name, text in notes.items()))
    replace_text(run / "ablation.md", "\n\n".join(lines) + "\n")
    content = {"rows": dict(rows), "tables": [table_json(table) for table in tables], "notes": notes}
    replace_text(run / SCORES, json.dumps(content, indent=1, allow_nan=False) + "\n")
    print("\n".join([*(f"{name} broke down: {reason}" for name, reason in failed.items()), f"{run / 'ablation.md'}"]))


@contextmanager
def _naming(name: str, experiment: Experiment) -> Iterator[None]:
    """Says which row it is that does not fit its weights or its run: rows differ in their parts."""
    try:
        yield
    except CheckpointError as error:
        start = experiment.training.start_from
        way_out = "" if start is None else "; let rows begin with parts that all of them have: --training.start_parts '[PART, ...]'"
        raise CheckpointError(f"row {name}: {error}{way_out}") from error


def _read_row(config: Path, row: Path, words: Sequence[str], packages: Sequence[str]) -> Experiment:
    experiment = experiments.read(["--config", str(config), "--config", str(row), *words], prog="ocl ablate", packages=packages)
    if experiment.config["held_out"] is None:
        raise ConfigError(f"{config} has no held_out data to score; give it some, or pass --held_out CLASS.")
    return experiment


def _score(experiment: Experiment, run: Path, scoring: Scoring, on: str) -> dict[str, Any]:
    """Scores of the run's newest weights (the average, where it kept one)."""
    data = experiment.held_out()
    assert data is not None
    model, _ = trained_model(experiment, run)
    found = evaluate(
        model, data, protocols=scoring.protocols, limit=scoring.limit, seed=scoring.seed, device=device(on), num_examples=0
    )
    finite = {masks: {name: value for name, value in scores.items() if value == value} for masks, scores in found.scores.items()}
    return {"images": found.images, "data": type(data).__name__, "scores": finite}


def _budget(experiment: Experiment) -> dict[str, int]:
    training = experiment.training
    return {"samples": training.steps * training.batch_size * training.accumulate, "training_seed": training.seed}


def _caption(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What every row was given; a value that differs between rows is given as a range."""
    values = {name: sorted({row[name] for row in rows.values() if name in row}) for name in ("steps", "samples", "images")}
    text = {name: "-".join(map(str, dict.fromkeys([found[0], found[-1]]))) for name, found in values.items() if found}
    seeds = ", ".join(map(str, sorted({row["training_seed"] for row in rows.values()})))
    budget = f"Budget per row: {text['steps']} steps, {text['samples']} images seen, training seed {seeds}."
    return budget + (f" Scored on {text['images']} held-out images; higher is better." if "images" in text else "")
