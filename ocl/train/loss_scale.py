"""Dynamic loss scaling (Micikevicius et al. 2018) by the rule and the state of torch.amp.GradScaler, for gradients elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000


@final
class LossScale:
    """Halved after an update whose gradient overflowed, doubled after 2000 in a row that did not; 1 where not enabled."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self.value = START if enabled else 1.0
        self._good = 0

    def update(self, *, finite: bool) -> None:
        if not self._enabled:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.value *= BACKOFF
        elif self._good == INTERVAL:
            self.value, self._good = self.value * GROWTH, 0

    def state(self) -> dict[str, Any]:
        """As GradScaler.state_dict."""
        if not self._enabled:
            return {}
        return {"scale": self.value, "growth_factor": GROWTH, "backoff_factor": BACKOFF, "growth_interval": INTERVAL,
                "_growth_tracker": self._good}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        if self._enabled and state:
            self.value, self._good = float(state["scale"]), int(state["_growth_tracker"])
