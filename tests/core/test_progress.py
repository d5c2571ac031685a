"""Progress is told once, in plain lines where nobody watches, and always in the log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lcc.core.progress import Progress


class Clock:
    """A clock that a test winds by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def advance_each_second(progress: Progress, clock: Clock, seconds: int, **info: float) -> None:
    with progress.track("finetune", seconds) as bar:
        for _ in range(seconds):
            clock.now += 1
            bar.advance(**info)


def test_a_plain_line_comes_at_most_every_ten_seconds() -> None:
    shown, clock = io.StringIO(), Clock()
    advance_each_second(Progress(stream=shown, clock=clock), clock, 100, loss=2.5)
    lines = shown.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "finetune: 10/100 steps (10 %), 1.0 steps/s, 1 min 30 s left, loss 2.5"
    assert lines[-1] == "finetune: 100 steps in 1 min 40 s (1.0 steps/s), loss 2.5"


def test_short_work_is_told_to_the_log_only(tmp_path: Path) -> None:
    shown, clock = io.StringIO(), Clock()
    progress = Progress(tmp_path / "log.txt", stream=shown, clock=clock)
    advance_each_second(progress, clock, 1)
    assert shown.getvalue() == ""
    assert "finetune: 1 step in 1.0 s" in (tmp_path / "log.txt").read_text()


def test_a_quiet_rank_shows_nothing_and_still_counts() -> None:
    shown, clock = Terminal(), Clock()
    progress = Progress(quiet=True, stream=shown, clock=clock)
    progress.info("hello")
    progress.warn("careful")
    with progress.track("finetune", 30) as bar:
        clock.now += 20
        bar.advance(10)
    assert shown.getvalue() == ""
    assert (bar.done, bar.rate, bar.seconds_left) == (10, 0.5, 40.0)


def test_everything_said_stands_in_the_log(tmp_path: Path) -> None:
    log, clock = tmp_path / "deep" / "log.txt", Clock()
    progress = Progress(log, quiet=True, clock=clock)
    progress.info("17,013 tokens kept")
    progress.warn("no [bold]markup[/bold] here")
    advance_each_second(progress, clock, 20)
    lines = [line[20:] for line in log.read_text().splitlines()]
    assert lines[:2] == ["17,013 tokens kept", "warning: no [bold]markup[/bold] here"]
    assert lines[2].startswith("finetune: 10/20 steps")
    assert lines[-1].startswith("finetune: 20 steps in 20.0 s")


def test_what_a_resumed_run_found_done_does_not_count_as_speed() -> None:
    clock = Clock()
    with Progress(quiet=True, clock=clock).track("finetune", 1000, done=900) as bar:
        clock.now += 10
        bar.advance(10)
        assert bar.rate == 1.0
        assert bar.seconds_left == 90.0


def test_a_terminal_sees_bars_and_sentences_and_is_left_clean() -> None:
    shown = Terminal()
    progress = Progress(stream=shown)
    with progress.track("finetune", 2) as outer, progress.track("validate", None, "row") as inner:
        inner.advance(3)
        progress.info("a sentence [with brackets]")
        outer.advance(loss=1.25)
    text = shown.getvalue()
    assert "a sentence [with brackets]" in text
    assert text.rstrip("\r\n").endswith("\x1b[?25h")  # the cursor is shown again


def test_an_error_leaves_where_the_work_stopped_in_the_log(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "log.txt", quiet=True)
    with pytest.raises(KeyboardInterrupt), progress.track("finetune", 10) as bar:
        bar.advance(4)
        raise KeyboardInterrupt
    assert "stopped at finetune: 4/10 steps (40 %)" in (tmp_path / "log.txt").read_text()


def test_downloads_are_told_in_megabytes() -> None:
    shown, clock = io.StringIO(), Clock()
    with Progress(stream=shown, clock=clock).track("fetch", 253e6, "bytes") as bar:
        clock.now += 10
        bar.advance(50e6)
    first = shown.getvalue().splitlines()[0]
    assert first == "fetch: 50.0/253.0 MB (20 %), 5.0 MB/s, 40.6 s left"
