"""A signal is a wish that waits for the end of the step; only an insistent Ctrl-C breaks in."""

import signal

import pytest

from ocl.train import interrupt
from ocl.train.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_and_its_echo_are_one_wish(number):
    with StopRequest() as stop:
        assert stop.signal_name is None
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop.signal_name == number.name


def test_a_second_ctrl_c_breaks_in(monkeypatch):
    monkeypatch.setattr(interrupt, "_ECHO", 0.0)
    with pytest.raises(KeyboardInterrupt), StopRequest():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_handlers_return_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
