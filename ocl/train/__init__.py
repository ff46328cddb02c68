"""Training: `fit` runs an `Engine` over a stream of batches into a run folder; `load_model` reads the folder for inference."""

from ocl.train.checkpoint import load_model
from ocl.train.engine import Engine, LocalEngine
from ocl.train.loop import Evaluate, Outcome, Stream, fit
from ocl.train.options import Optimizer, Schedule, Training
from ocl.train.setup import DeepSpeed, EngineSetup, Local
from ocl.train.world import World

__all__ = [
    "DeepSpeed", "Engine", "EngineSetup", "Evaluate", "Local", "LocalEngine", "Optimizer", "Outcome", "Schedule", "Stream",
    "Training", "World", "fit", "load_model",
]  # fmt: skip
