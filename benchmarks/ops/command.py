"""What `ocl bench ops` does: choose cases, measure them one by one, keep and show what was found."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, tables
from benchmarks.ops import cases, goals, measure, report
from benchmarks.ops.cases import DTYPES, MODE_TEXT, SIZES, Case, Choice
from benchmarks.ops.clock import Roof, measure_roof
from benchmarks.ops.store import Store, identity
from ocl.errors import ConfigError
from ocl.ops import native_summary
from ocl.ops.kernels import kernels

SECONDS, QUICK_SECONDS = 0.6, 0.12  # of clock per provider and row


@dataclass(frozen=True)
class Wishes:
    """The options of the command. None: all of them."""

    device: str = "cpu"
    quick: bool = False
    ops: Sequence[str] | None = None
    modes: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    providers: Sequence[str] | None = None
    shape: Sequence[str] = ()
    sizes: Sequence[str] = ()
    threads: int = 1
    out: Path | None = None
    missing: bool = False
    minutes: float | None = None
    commit: str | None = None
    command: str = "ocl bench ops"

    @property
    def kind(self) -> str:
        return "cpu" if self.device == "cpu" else "cuda"

    @property
    def whole(self) -> bool:
        """Nothing was left out, so that older rows have no place beside these."""
        return not (self.ops or self.modes or self.dtypes or self.providers or self.shape or self.sizes or self.missing)

    @property
    def folder(self) -> Path | None:
        """Where results go; a quick run, own sizes and rows without all providers are shown only, unless a folder is named."""
        if self.out is not None or self.quick or self.sizes or self.providers:
            return self.out
        return machine.RESULTS / machine.hardware(self.device)


def run(wishes: Wishes) -> int:
    """Measure and report; 1 where one of our own results is wrong. Raises ConfigError where a wish names something unknown."""
    chosen = choose(wishes)
    _prepare(wishes)
    store = None if wishes.folder is None else Store(wishes.folder, start_over=wishes.whole)
    commit = wishes.commit or machine.commit()
    if store is not None and wishes.missing:
        there = {key for key, row in store.rows.items() if row["commit"] == commit}
        chosen = [case for case in chosen if identity({"key": case.key, "threads": wishes.threads}) not in there]
    roof = measure_roof(wishes.device, DTYPES)
    rows = _measure(chosen, wishes, roof, _header(wishes, roof, commit), store)
    _show_goals(rows if store is None else list(store.rows.values()), wishes)
    if store is not None and store.rows:
        print("\n".join(str(path) for path in tables.write(store.path.parent)))
    broken = [f"{row['key']}: {name}" for row in rows for name in row["providers"] if measure.broken(row, name)]
    if broken:
        print("\n".join(["wrong or failing, so without a speed:", *broken]))
    return 1 if broken else 0


def _prepare(wishes: Wishes) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory would print two lines per call
    torch.set_num_threads(wishes.threads)
    if wishes.device != "cpu":
        torch.cuda.set_device(torch.device(wishes.device).index or 0)


def choose(wishes: Wishes) -> list[Case]:
    """The cases that fit the wishes."""
    _known("--op", wishes.ops, SIZES)
    _known("--mode", wishes.modes, MODE_TEXT)
    _known("--dtype", wishes.dtypes, DTYPES)
    _known("--provider", wishes.providers, measure.provider_names())
    if wishes.threads < 1:
        raise ConfigError(f"ocl bench: --threads must be at least 1, got {wishes.threads}; use --threads 1.")
    if wishes.device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"ocl bench: clocks are written for cpu and cuda, got --device {wishes.device}; use --device cpu.")
    if not wishes.sizes:
        choice = Choice(wishes.ops, wishes.modes, wishes.dtypes, wishes.shape)
        known = cases.listed(wishes.kind, quick=wishes.quick)
        if wishes.kind == "cpu" and any("=" not in word for word in wishes.shape):  # a model by its name
            known = cases.every_model()
        return cases.select(known, choice)
    if not wishes.ops or len(wishes.ops) != 1:
        raise ConfigError("ocl bench: --sizes are those of one operator; name it, e.g. --op register_attention.")
    made = cases.custom(wishes.ops[0], wishes.sizes, dtypes=wishes.dtypes, modes=wishes.modes)
    return cases.select(made, Choice(shape=wishes.shape))


def _known(option: str, names: Sequence[str] | None, known: Any) -> None:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"ocl bench: {option} knows {', '.join(known)}, got {name}; choose among those.")


def _measure(
    chosen: Sequence[Case], wishes: Wishes, roof: Roof, header: dict[str, Any], store: Store | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for number, case in enumerate(chosen):
        if wishes.minutes is not None and time.monotonic() - started > 60 * wishes.minutes:
            print(f"{len(chosen) - number} rows left after {wishes.minutes:g} minutes; --missing goes on with them")
            break
        providers = measure.chosen(measure.PROBLEMS[case.op], wishes.providers, quick=wishes.quick)
        if not providers:
            print(f"{case.op} has no provider {', '.join(wishes.providers or ())}, left out")
            continue
        seconds = QUICK_SECONDS if wishes.quick else SECONDS
        row = measure.measure(case, providers, wishes.device, roof=roof, seconds=seconds)
        row |= {"commit": header["environment"]["commit"], "date": header["environment"]["date"]}
        print(f"[{number + 1} of {len(chosen)}] {report.block(row)}\n", flush=True)
        rows.append(row)
        if store is not None:
            store.put(row, header)
    return rows


def _header(wishes: Wishes, roof: Roof, commit: str) -> dict[str, Any]:
    return {
        "benchmark": "ops", "command": wishes.command, "device": wishes.device,
        "environment": {**machine.environment(wishes.device), "commit": commit, "native": native_summary(), **_versions()},
        "kernels": [asdict(kernel) for kernel in kernels()], "roof": roof.as_row(),
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found if torch.cuda.is_available() else {}


def _show_goals(rows: Sequence[dict[str, Any]], wishes: Wishes) -> None:
    """Goals of this device of which a row was measured; in a quick run none, since it measures too little."""
    outcomes = [] if wishes.quick or wishes.sizes else [goal for goal in goals.judge(rows, wishes.kind) if goal.measured]
    if outcomes:
        print(report.columns(outcomes))
    if wishes.kind == "cpu" and not torch.cuda.is_available():
        print("G1 to G12: not measured on a GPU (none here)")
