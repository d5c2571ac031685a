"""A request to stop is one flag: raised by signals, seen by every bar, put away at the end."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from lcc.core import signals
from lcc.core.errors import PreemptedError
from lcc.core.progress import Progress


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_a_request_that_a_check_answers(name: str) -> None:
    with signals.watched():
        signals.check("encode")
        signal.raise_signal(getattr(signal, name))
        assert signals.requested()
        with pytest.raises(PreemptedError) as caught:
            signals.check("encode")
    assert str(caught.value) == f"encode: asked to stop ({name})."
    assert caught.value.exit_code == 75
    assert not signals.requested()


def test_handlers_are_put_back_once_the_outermost_is_left() -> None:
    before = {number: signal.getsignal(number) for number in signals.ASKING}
    with signals.watched():
        with signals.watched():
            signal.raise_signal(signal.SIGTERM)
        assert signals.requested(), "the outer one still has to hear of it"
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in signals.ASKING} == before


def test_a_second_ctrl_c_does_not_wait() -> None:
    with signals.watched(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_leaving_does_not_leave_the_next_unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(number: int, handler: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in signals.ASKING}
    try:
        with pytest.raises(KeyboardInterrupt), signals.watched():
            monkeypatch.setattr(signal, "signal", interrupted)
        monkeypatch.undo()
        for number in signals.ASKING:
            signal.signal(number, signal.SIG_IGN)
        with signals.watched():
            signal.raise_signal(signal.SIGTERM)
            assert signals.requested()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_ctrl_c_is_answered_where_somebody_watches(capfd: pytest.CaptureFixture[str]) -> None:
    with signals.watched(tells=True):
        signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr().err == ""
    with signals.watched(tells=True):
        signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C again stops at once" in capfd.readouterr().err


def test_a_bar_stops_after_what_was_done_is_counted() -> None:
    progress = Progress(quiet=True)
    with signals.watched(), progress.track("encode train", 3, "row") as bar:
        bar.advance()
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(PreemptedError, match=r"encode train: asked to stop \(SIGUSR1\)"):
            bar.advance()
        assert bar.done == 2


def test_a_bar_of_a_loop_that_agrees_first_does_not_stop_by_itself() -> None:
    progress = Progress(quiet=True)
    with signals.watched(), progress.track("train", 3, polls=False) as bar:
        signal.raise_signal(signal.SIGUSR1)
        bar.advance()
        assert signals.requested()


def test_another_thread_leaves_signals_alone() -> None:
    found = []

    def look() -> None:
        with signals.watched():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
