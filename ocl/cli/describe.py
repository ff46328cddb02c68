"""`ocl describe RUN | CONFIG`: the resolved config, parameters per part, and which kernels will run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from ocl.cli import experiment as experiments
from ocl.cli.options import command, existing
from ocl.models import SlotAutoencoder
from ocl.ops.kernels import kernels


def main(argv: Sequence[str]) -> int:
    options = command("describe", "Show what a config or run is made of; no weight is read. `ocl describe ops` shows kernels only.")
    options.add_argument("what", help="a YAML file, a run folder, or `ops`")
    known, words = options.parse_known_args(argv)
    console = Console()
    if known.what != "ops":
        path = existing(Path(known.what), "a YAML file or a run folder")
        path = path / experiments.CONFIG if path.is_dir() else path
        experiment = experiments.read(["--config", str(path), *words], prog="ocl describe", packages=known.packages)
        console.print(experiment.text, highlight=False, markup=False)
        console.print(parameter_table(experiment.model(device="meta")))
    console.print(kernel_table())
    return 0


def parameter_table(model: SlotAutoencoder) -> Table:
    """Parameters of each part: all, and those that are trained."""
    table = Table("part", "class", "parameters", "trained", title="Parameters", title_justify="left")
    for name, part in [*model.named_children(), ("total", model)]:
        table.add_row(name, type(part).__name__, f"{_count(part):,}", f"{_count(part, trained=True):,}")
    return table


def kernel_table() -> Table:
    """Which implementation each operator takes on this machine, and why."""
    table = Table("operator", "device", "kernel", "because", title="Kernels", title_justify="left")
    for kernel in kernels():
        table.add_row(kernel.operator, kernel.device, kernel.implementation, kernel.reason)
    return table


def _count(part: nn.Module, *, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad or not trained)
