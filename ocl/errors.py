"""What can go wrong because of what a user passed. Each message says: place, rule, what came, way out."""


from __future__ import annotations


class OCLError(ValueError):
    """Base of every user error of this package; a plain `ValueError` for callers that do not know us."""


class ShapeError(OCLError):
    """A tensor has another rank, width, grid or dtype than the part that received it expects."""


class RangeError(OCLError):
    """Values lie outside the range a part expects, or are not finite."""


class DataError(OCLError):
    """A file or folder of a dataset is missing, truncated, or contradicts another file."""


class ConfigError(OCLError):
    """A configuration names something unknown, ill-typed or not allowed."""


class CheckpointError(OCLError):
    """A checkpoint is incomplete, damaged, or belongs to another configuration."""


class ProcessError(OCLError):
    """A run on several processes lost one of them, or they did not find one another."""


class MissingExtra(OCLError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(f'{purpose} need {package}; run: pip install "ocl[{extra}]"')
        self._needs = (purpose, package, extra)

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str, str]]:
        return type(self), self._needs  # data workers send their errors to the main process
