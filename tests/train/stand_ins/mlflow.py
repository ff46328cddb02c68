"""Takes the calls of mlflow that ocl makes, as mlflow 3 takes them, and keeps what it is told; where mlflow is not installed."""

import re
from types import SimpleNamespace

runs = {}
active = []


def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, parent_run_id=None, tags=None, description=None):
    assert nested or not active, f"Run with UUID {active} is already active"
    assert run_id is None or run_id in runs, f"Run with id={run_id} not found"
    if run_id is None:
        run_id = f"run{len(runs)}"
        runs[run_id] = SimpleNamespace(name=run_name, history=[])
    active.append(run_id)
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id))


def log_metrics(metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None, dataset=None):
    for name, value in metrics.items():
        assert re.fullmatch(r"[/\w.\- :]+", name), f"Invalid value {name!r} for parameter 'metrics[0].name'"
        runs[run_id or active[-1]].history.append((step, name, float(value)))


def end_run(status="FINISHED"):
    if active:
        active.pop()
