"""Services that show the numbers of many runs side by side. Each is told what log.jsonl is told, under the same names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import final

from ocl.errors import MissingExtra
from ocl.train.files import replace_text
from ocl.train.options import Tracker


def check_installed(track: Iterable[Tracker]) -> None:
    """Raises MissingExtra where a service that a run reports to is not installed. Imports none."""
    for name in track:
        if find_spec(name) is None:
            raise MissingExtra(f"training.track=[{name}]", name, name)


class Service(ABC):
    """A place that takes named numbers of steps. A resumed run goes on in the record that it began."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the finite numbers of one step."""

    @abstractmethod
    def close(self) -> None:
        """The run ends here, for now."""


@final
class WeightsAndBiases(Service):
    """https://docs.wandb.ai; project, entity and WANDB_MODE (offline: kept in the run folder) come from variables."""

    def __init__(self, run: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("training.track=[wandb]", "wandb", "wandb") from error
        known = _known(run / "wandb.id")
        self._run = wandb.init(dir=run, name=run.name, id=known, resume="allow")
        replace_text(run / "wandb.id", self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


@final
class MLflow(Service):
    """https://mlflow.org; server and experiment come from MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: Path) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtra("training.track=[mlflow]", "mlflow", "mlflow") from error
        self._mlflow = mlflow
        known = _known(run / "mlflow.id")
        started = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=run.name)
        self._id = started.info.run_id
        replace_text(run / "mlflow.id", self._id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        named = {name.replace("[", " ").replace("]", ""): value for name, value in values.items()}  # its names hold no brackets
        self._mlflow.log_metrics(named, step=step, run_id=self._id)

    def close(self) -> None:
        self._mlflow.end_run()


SERVICES: Mapping[Tracker, Callable[[Path], Service]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def _known(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None
