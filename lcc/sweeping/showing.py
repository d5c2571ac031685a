"""A sweep as it goes on: a bar on a terminal, lines elsewhere, one line for every point's end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from lcc.core.progress import Bar, Progress
from lcc.core.sweeps import Point, Result, Sweep

MOST_SHOWN = 3  # points that run, by name


class Board:
    """What the driver shows; `total` is how many points there will be."""

    def __init__(self, progress: Progress, sweep: Sweep, total: int) -> None:
        self.progress, self.sweep, self.total = progress, sweep, total

    def submitted(self, points: list[Point]) -> None:
        """New points were handed to the launcher."""
        names = ", ".join(self._name(point) for point in points[:MOST_SHOWN])
        more = f" and {len(points) - MOST_SHOWN} more" if len(points) > MOST_SHOWN else ""
        self.progress.say(f"submitted {names}{more}")

    def found(self, point: Point) -> None:
        """An earlier driver's point still waits or runs."""
        self.progress.say(f"{self._name(point)}: found again, it waits or runs since an earlier "
                          "start of this sweep")  # fmt: skip

    def ended(self, bar: Bar, point: Point, result: Result, *, reused: bool) -> None:
        """A point is settled."""
        name = self._name(point)
        bar.advance(1)
        if point.pruned:
            self.progress.say(f"{name}: stopped early, others were better at the same step")
        elif result.status == "finished" and reused:
            self.progress.say(f"{name}: finished before")
        elif result.status == "finished":
            told = "".join(f", {key} {value:.6g}" for key, value in point.values.items())
            self.progress.say(f"{name}: finished in {result.seconds:.0f} s{told}")
        else:
            first = result.error.splitlines()[0] if result.error else "failed"
            self.progress.warn(f"{name}: {first} (log: {self.sweep.log(point.index)})")

    def restarted(self, point: Point, times: int) -> None:
        """A preempted point is started again."""
        self.progress.say(f"{self._name(point)}: preempted, started again (restart {times})")

    def moved(self, bar: Bar, running: Iterable[Point]) -> None:
        """What runs now, with the step each point is at."""
        listed = list(running)
        shown = [f"{p.label or p.run} {_place(p)}".strip() for p in listed[:MOST_SHOWN]]
        if len(listed) > MOST_SHOWN:
            shown.append(f"{len(listed) - MOST_SHOWN} more")
        bar.advance(0, running="; ".join(shown) or "nothing")

    def _name(self, point: Point) -> str:
        return f"[{point.index + 1}/{self.total}] {point.label or point.run or 'the point'}"


def _place(point: Point) -> str:
    """`3/9 finetune`: the step that a running point is at, from its run.json."""
    try:
        facts = json.loads((Path("runs") / point.run / "run.json").read_text(encoding="utf-8"))
        steps = facts["steps"]
    except (OSError, ValueError, KeyError):
        return ""
    todo = [n for n, step in enumerate(steps) if step["status"] not in ("finished", "reused")]
    return f"{todo[0] + 1}/{len(steps)} {steps[todo[0]]['name']}" if todo else ""
