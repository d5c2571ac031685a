"""Progress of long steps (bars on a terminal, lines elsewhere, a log), and numbers along training."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

from lcc.core import signals
from lcc.core.disk import write_text
from lcc.core.format import duration

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0
SECONDS_WORTH_A_LINE = 2.0  # what took less is told to the log only


class Bar:
    """One long piece of work: `advance` as it goes on, with numbers worth seeing beside it."""

    def __init__(self, label: str, total: float | None, unit: str, *, done: float, now: float):
        self.label, self.total, self.unit = label, total, unit
        self.done, self.seconds = done, 0.0
        self.info: dict[str, Any] = {}
        self._resumed_at, self._started, self._last_line = done, now, now
        self.polls = True
        self._notify: Callable[[Bar], None] = lambda bar: None

    def advance(self, n: float = 1, **info: Any) -> None:
        """`n` more units are done; `info` such as `loss=2.31` replaces what was shown before.

        What was done is to be kept before: raises PreemptedError if this process was asked to stop.
        """
        self.done += n
        self.info.update(info)
        self._notify(self)
        if self.polls:
            signals.check(self.label)

    @property
    def rate(self) -> float | None:
        """Units a second since this process began; what a resumed run found done does not count."""
        fresh = self.done - self._resumed_at
        return fresh / self.seconds if self.seconds > 0 and fresh > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `total` at the present rate, where both are known."""
        if self.total is None or not self.rate:
            return None
        return max(self.total - self.done, 0) / self.rate

    def tick(self, now: float) -> bool:
        """Take the time; whether a plain line is due."""
        self.seconds = now - self._started
        due = now - self._last_line >= SECONDS_BETWEEN_LINES
        if due:
            self._last_line = now
        return due

    def sentence(self) -> str:
        """The state as one plain line."""
        of = "" if self.total is None else f"/{_count(self.total, self.unit)}"
        parts = [f"{_count(self.done, self.unit)}{of} {_plural(self.unit)}"]
        if self.total:
            parts[0] += f" ({min(100 * self.done / self.total, 100):.0f} %)"
        if self.rate:
            parts.append(_rate(self.rate, self.unit))
        if self.seconds_left:
            parts.append(f"{_duration(self.seconds_left)} left")
        return f"{self.label}: {', '.join([*parts, *_shown(self.info)])}"

    def summary(self) -> str:
        """What was done, in how long, when the work ends."""
        unit = self.unit if self.done == 1 else _plural(self.unit)
        text = f"{self.label}: {_count(self.done, self.unit)} {unit}"
        speed = f" ({_rate(self.rate, self.unit)})" if self.rate else ""
        return ", ".join([f"{text} in {_duration(self.seconds)}{speed}", *_shown(self.info)])


class Progress:
    """Progress of a step, on a terminal or as lines; all of it also stands in `log`.

    `quiet` (ranks other than the first, tests) shows nothing; without `log` it also keeps nothing.
    """

    def __init__(
        self,
        log: Path | None = None,
        quiet: bool = False,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.log, self.quiet = log, quiet
        self._stream, self._clock = stream, clock
        self._display: Display | None = None
        self._tasks: dict[int, TaskID] = {}

    @contextmanager
    def track(
        self,
        label: str,
        total: float | None = None,
        unit: str = "step",
        *,
        done: float = 0,
        polls: bool = True,
    ) -> Iterator[Bar]:
        """Show work of `total` units, of which a resumed run has `done` already.

        A loop that must agree with other processes before it stops says `polls=False`.
        """
        bar = Bar(label, total, unit, done=done, now=self._clock())
        bar.polls, bar._notify = polls, self._moved
        self._open(bar)
        try:
            yield bar
        except BaseException:
            self._close(bar)
            self._record(f"stopped at {bar.sentence()}")
            raise
        self._close(bar)
        bar.tick(self._clock())
        self._record(bar.summary())
        if bar.seconds >= SECONDS_WORTH_A_LINE:
            self._show(bar.summary(), "")

    def info(self, sentence: str) -> None:
        """A sentence for the reader and the log."""
        self._record(sentence)
        self._show(sentence, "")

    def warn(self, sentence: str) -> None:
        """A sentence that should alarm the reader."""
        self._record(f"warning: {sentence}")
        self._show(f"warning: {sentence}", "yellow")

    def _moved(self, bar: Bar) -> None:
        due = bar.tick(self._clock())
        if due:
            self._record(bar.sentence())
        task = self._tasks.get(id(bar))
        if self._display is not None and task is not None:
            shown = "  ".join(_shown(bar.info))
            self._display.update(task, completed=bar.done, info=shown, speed=_speed(bar))
        elif due:
            self._show(bar.sentence(), "")

    def _open(self, bar: Bar) -> None:
        if self.quiet or not self._on_terminal():
            return
        if self._display is None:
            self._display = _display(self._out())
            self._display.start()
        self._tasks[id(bar)] = self._display.add_task(
            bar.label, total=bar.total, completed=int(bar.done), info="", speed=""
        )

    def _close(self, bar: Bar) -> None:
        task = self._tasks.pop(id(bar), None)
        if self._display is None or task is None:
            return
        self._display.remove_task(task)
        if not self._tasks:
            self._display.stop()
            self._display = None

    def _show(self, sentence: str, style: str) -> None:
        if self.quiet:
            return
        if self._display is not None:
            self._display.console.print(sentence, style=style, markup=False, highlight=False)
        else:
            print(sentence, file=self._out(), flush=True)

    def _record(self, sentence: str) -> None:
        if self.log is None:
            return
        # A full disk stops a step where it writes what counts, with that sentence, and not here.
        with suppress(OSError):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {sentence}\n")

    def _out(self) -> TextIO:
        # stdout belongs to results (`--json` must stay JSON), so progress goes beside it.
        return self._stream if self._stream is not None else sys.stderr

    def _on_terminal(self) -> bool:
        return self._out().isatty()


def _display(stream: TextIO) -> Display:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    return Display(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[info]}", style="dim", markup=False),
        console=Console(file=stream),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # piped results must not be drawn among the bars
    )


def _speed(bar: Bar) -> str:
    return _rate(bar.rate, bar.unit) if bar.rate else ""


def _shown(info: dict[str, Any]) -> list[str]:
    return [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items()]


def _rate(rate: float, unit: str) -> str:
    if unit == "bytes":
        return f"{rate / 1e6:.1f} MB/s"
    if rate < 1:
        return f"{1 / rate:.1f} s per {unit}"
    return f"{rate:,.0f} {_plural(unit)}/s" if rate >= 100 else f"{rate:.1f} {_plural(unit)}/s"


def _count(number: float, unit: str) -> str:
    return f"{number / 1e6:,.1f}" if unit == "bytes" else f"{number:,.0f}"


def _plural(unit: str) -> str:
    if unit == "bytes":
        return "MB"
    if unit.endswith("s"):
        return unit
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


# Numbers along training: the tracker's contract, and the curve file that every report reads.

Value = float | int | bool


@runtime_checkable
class Tracker(Protocol):
    """Where training numbers are sent beside the curve file."""

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """The numbers of one step."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


@runtime_checkable
class TrackerCard(Protocol):
    """What `tracker=NAME` chooses: it opens a tracker for one step of a run."""

    def open(self, folder: Path, name: str) -> Tracker:
        """A tracker that keeps its files below `folder` and shows the step as `name`."""
        ...


class CurveFile:
    """Training numbers as JSON lines, appended as they come and cut back when a run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, values: Mapping[str, Value | None]) -> None:
        """Append one step; a number that is not finite is kept as null, which JSON can say."""
        row = {"step": step, **{name: _finite(value) for name, value in values.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is held back; every line was written as it came."""

    def rewind(self, step: int) -> None:
        """Drop every line after `step`, and a half-written last one: the run resumes there."""
        if not self.path.is_file():
            return
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_text(self.path, "".join(kept))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every complete line; the last may be cut off by a kill and is then left out."""
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def _finite(value: Value | None) -> Value | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A number with its unit: what stages report and views show.


@dataclass(frozen=True)
class Measure:
    """`unit` is one of `bytes`, `seconds`, `tokens/s`, `nats`, `share`, `count`, `BLEU` …"""

    value: float | int | str | None
    unit: str = ""
