"""SIGINT and SIGTERM as a wish to stop: a cluster's time limit or Ctrl-C costs no step."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self, final

_ECHO = 1.0  # seconds; `timeout` and schedulers send a signal to the process and again to its group


@final
class StopRequest:
    """Inside, SIGINT and SIGTERM only set `signal_name`. A second Ctrl-C, later than an echo, raises KeyboardInterrupt.

    Does nothing outside the main thread, where Python delivers no signals.
    """

    signal_name: str | None = None

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        self._since = 0.0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is None:
            self.signal_name, self._since = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _ECHO:
            raise KeyboardInterrupt
