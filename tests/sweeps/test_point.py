"""A point that is stopped in any line of its process says that it was preempted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lcc.store.sweeps import Point, Result, Sweep
from lcc.sweeps import point as process


class Interrupted(Sweep):
    """Stopped while the note that the point runs is on its way to the disk."""

    def keep_result(self, index: int, result: Result) -> None:
        super().keep_result(index, result)
        raise KeyboardInterrupt


def test_a_stop_while_the_first_note_is_written_is_a_preemption(tmp_path: Path) -> None:
    (tmp_path / "points").mkdir()
    sweep = Interrupted(tmp_path, "run", [])
    result = process._attempt(sweep, Point(0, ["+recipe=tiny"], {}, run="r"), attempts=1)
    assert (result.status, result.exit_code) == ("preempted", 75)


def test_stops_are_ignored_while_the_result_is_written() -> None:

    before = {number: signal.getsignal(number) for number in process.STOPPING}
    try:
        process._stop_when_told()
        process._ignore_stops()
        for number in process.STOPPING:
            os.kill(os.getpid(), number)  # an interrupt here would be the test's error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
