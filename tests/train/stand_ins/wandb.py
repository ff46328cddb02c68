"""Takes the calls of wandb that ocl makes, as wandb 0.2x takes them, and keeps what it is told; where wandb is not installed."""

runs = {}


class Run:
    """wandb.Run: steps never go back, what is told again about an earlier one is dropped."""

    def __init__(self, id, name, dir):
        self.id, self.name, self.dir = id, name, dir
        self.history, self.finished = {}, False

    def log(self, data, step=None, commit=None):
        assert not self.finished and isinstance(data, dict) and all(isinstance(value, (int, float)) for value in data.values())
        if not self.history or step >= max(self.history):
            self.history.setdefault(step, {}).update(data)

    def finish(self, exit_code=None, quiet=None):
        self.finished = True


def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None, *, resume=None, mode=None):
    if id not in runs:
        id = id or f"run{len(runs)}"
        runs[id] = Run(id, name, dir)
    else:
        assert resume in ("allow", "must", True), "another run holds this id"
    runs[id].finished = False
    return runs[id]
