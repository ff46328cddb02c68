"""A trained model for the commands that use one: a run folder, a checkpoint in it, or a folder in the hub's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ocl.cli.experiment import CONFIG, Experiment, read_run
from ocl.errors import ConfigError
from ocl.models import SlotAutoencoder, hub
from ocl.nn.freezing import restoring
from ocl.train import load_model
from ocl.train.checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """Where a trained model lies. experiment: how it was trained; None for a folder in the hub's layout, which does not say."""

    path: Path
    experiment: Experiment | None
    packages: Sequence[str]

    @property
    def text(self) -> str:
        """Its configuration: YAML, or the JSON of the hub's layout."""
        return (self.path / hub.CONFIG).read_text(encoding="utf-8") if self.experiment is None else self.experiment.text

    def load(self, *, ema: bool = True) -> tuple[SlotAutoencoder, str]:
        """The model, and what to call it in a title: "scenes, step 4000". Raises like `load_model` and `from_pretrained`.

        ema: the averaged weights, where there are any. Raises ConfigError without `ema` where there is one set of weights.
        """
        if self.experiment is None:
            if not ema:
                raise ConfigError(f"{self.path} holds one set of weights, not a moving average beside others; leave out --no_ema.")
            return SlotAutoencoder.from_pretrained(self.path, packages=self.packages), self.path.resolve().name
        model, found = trained_model(self.experiment, self.path, ema=ema)
        return model, f"{self.path.name}, step {found.step}"


def source(path: Path, *, prog: str, packages: Sequence[str] = ()) -> Source:
    """Look at a folder, without loading weights. Raises ConfigError where it is none of the three kinds."""
    if (path / CONFIG).is_file():
        return Source(path, read_run(path, prog=prog, packages=packages), packages)
    if not (path / hub.CONFIG).is_file():
        raise ConfigError(
            f"{path} holds neither {CONFIG} nor {hub.CONFIG}; pass a run folder that `ocl train` wrote, or a folder that "
            "`ocl export` or `ocl convert` wrote."
        )
    return Source(path, None, packages)


def trained_model(experiment: Experiment, run: Path, *, ema: bool = True) -> tuple[SlotAutoencoder, Checkpoint]:
    """The model of a run with the weights of its newest checkpoint, or of the checkpoint that `run` is; see `load_model`.

    What a checkpoint brings is not computed anew, so that the text encoder behind a null prompt need not be there.
    """
    with restoring():
        model = experiment.model()
    return model, load_model(run, model, ema=ema)
