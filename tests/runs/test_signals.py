"""One signal asks, two end; what was ignored stays ignored."""

import signal

import pytest

from mow.runs.signals import SIGNALS, Stopped, StopSwitch


@pytest.fixture(autouse=True)
def _own_handlers():
    """Whatever runs these tests may ignore signals itself."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_the_run_stops_when_it_can(number):
    with StopSwitch() as switch:
        switch.check()
        signal.raise_signal(number)
        assert switch.requested
        with pytest.raises(Stopped):
            switch.check()
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_second_signal_does_not_wait(monkeypatch):
    raised = []
    with StopSwitch():
        signal.raise_signal(signal.SIGINT)
        with monkeypatch.context() as patch:
            patch.setattr(signal, "raise_signal", raised.append)
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
        assert raised == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_terminal_may_hang_up_twice(monkeypatch):
    raised = []
    with StopSwitch() as switch:
        hang_up = signal.getsignal(signal.SIGHUP)
        monkeypatch.setattr(signal, "raise_signal", raised.append)
        for _ in range(2):
            hang_up(signal.SIGHUP, None)
        assert switch.requested
    assert raised == [], "that would end it at once"


def test_what_was_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSwitch() as switch:
        signal.raise_signal(signal.SIGINT)
        assert not switch.requested
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
