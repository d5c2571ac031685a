"""Sweep driver: asks the sampler, hands points to the launcher, and settles each as it ends."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lcc.config.search_space import Search, SearchTrial, TrialState, chosen_words
from lcc.core.errors import BusyError, LccError, PreemptedError, ResourceError
from lcc.core.progress import Bar, CurveFile, Progress
from lcc.methods.launchers import LaunchedTask, TaskGroup
from lcc.pipeline.planner import point_pipeline
from lcc.pipeline.runner import run_name
from lcc.pipeline.steps import Pipeline
from lcc.store.runs import read_run
from lcc.store.store import ROOT, Store
from lcc.store.sweeps import DRIVER, Point, Result, Sweep
from lcc.sweeps.spec import SweepSpec, check_steps, open_sweep, parse_sweep, values_of

# A sweep as it goes on: a bar on a terminal, lines elsewhere, one line for every point's end.

MOST_SHOWN = 3  # points that run, by name


class SweepProgress:
    """What the driver shows; `total` is how many points there will be."""

    def __init__(self, progress: Progress, sweep: Sweep, total: int) -> None:
        self.progress, self.sweep, self.total = progress, sweep, total

    def submitted(self, points: list[Point]) -> None:
        """New points were handed to the launcher."""
        names = ", ".join(self._name(point) for point in points[:MOST_SHOWN])
        more = f" and {len(points) - MOST_SHOWN} more" if len(points) > MOST_SHOWN else ""
        self.progress.info(f"submitted {names}{more}")

    def resumed(self, point: Point) -> None:
        """An earlier driver's point still waits or runs."""
        self.progress.info(
            f"{self._name(point)}: found again, it waits or runs since an earlier start of this sweep"
        )

    def ended(self, bar: Bar, point: Point, result: Result, *, reused: bool) -> None:
        """A point is settled."""
        name = self._name(point)
        bar.advance(1)
        if point.pruned:
            self.progress.info(f"{name}: stopped early, others were better at the same step")
        elif result.status == "finished" and reused:
            self.progress.info(f"{name}: finished before")
        elif result.status == "finished":
            values = "".join(f", {key} {value:.6g}" for key, value in point.values.items())
            self.progress.info(f"{name}: finished in {result.seconds:.0f} s{values}")
        else:
            first = result.error.splitlines()[0] if result.error else "failed"
            self.progress.warn(f"{name}: {first} (log: {self.sweep.log(point.index)})")

    def restarted(self, point: Point, times: int) -> None:
        """A preempted point is started again."""
        self.progress.info(f"{self._name(point)}: preempted, started again (restart {times})")

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


# How a point trains, read from the curve that its training step writes as it goes.


def watched_curve(pipeline: Pipeline, column: str) -> dict[str, float]:
    """Training step → `column` of the first training step of `pipeline` that has such a column."""
    for step in pipeline.steps:
        if not getattr(step.stage, "trains", False):
            continue
        for place in ("work", "store"):
            rows = CurveFile(ROOT / place / step.key / "curves.jsonl").rows()
            curve = {str(row["step"]): float(row[column]) for row in rows if _is_number(row, column)}
            if curve:
                return curve
    return {}


def _is_number(row: dict[str, object], column: str) -> bool:
    value = row.get(column)
    return isinstance(value, int | float) and math.isfinite(value)


SECONDS_BETWEEN_CURVES = 2.0


def run_sweep(words: list[str], *, verb: str, quiet: bool = False) -> Driver:
    """Run every point of `-m WORDS` that is not finished; a failed one stops no other.

    Raises BusyError while another process drives this sweep, PreemptedError when told to stop.
    """
    wanted = parse_sweep(words)
    sweep = open_sweep(wanted, words, verb=verb, root=ROOT)
    lease = sweep.leases.try_acquire(DRIVER)
    if lease is None:
        holder = sweep.leases.holder(DRIVER)
        raise BusyError(
            f"{sweep.folder.name} is driven by {holder or 'another process'}; "
            "lcc sweep status shows how far it is."
        )
    try:
        with _told_to_stop():
            driver = Driver(wanted, sweep, wanted.launcher.open(sweep.folder, sweep.folder.name))
            driver.drive(Progress(quiet=quiet))
    finally:
        lease.release()
    return driver


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM and SIGUSR1 stop the driver as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {n: signal.signal(n, signal.default_int_handler) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Driver:
    """One pass over a sweep: every point that is not finished is tried once."""

    wanted: SweepSpec
    sweep: Sweep
    group: TaskGroup
    pipelines: dict[int, Pipeline] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)  # of the points settled in this pass
    _open: set[int] = field(default_factory=set)
    _restarts: Counter[int] = field(default_factory=Counter)
    _next_look: float = 0.0

    @property
    def finished(self) -> list[Point]:
        """The points whose runs are whole."""
        return [p for p in self.sweep.points if self._status(p) == "finished"]

    @property
    def failed(self) -> list[tuple[Point, Result]]:
        """The points that failed in this pass."""
        return [
            (p, self.results[p.index])
            for p in self.sweep.points
            if self._status(p) in ("failed", "preempted")
        ]

    def _status(self, point: Point) -> str:
        return self.results[point.index].status if point.index in self.results else ""

    def drive(self, progress: Progress) -> None:
        """Run until nothing waits, runs or can be proposed."""
        total = self.wanted.sampler.total(self.wanted.search)
        display = SweepProgress(progress, self.sweep, total)
        left = ""
        try:
            with progress.track("sweep", total=total, unit="point") as bar:
                self._fill(display, bar)
                while self._open:
                    time.sleep(self.group.poll_seconds)
                    self._look(display, bar)
                    self._prune()
                    self._fill(display, bar)
                    display.moved(bar, [p for p in self.sweep.points if p.index in self._open])
        except KeyboardInterrupt:
            left = " interrupted"
        finally:
            goes_on = self.group.close()
        if left:
            advice = goes_on or "run the same command again to continue."
            raise PreemptedError(f"interrupted; {advice}")

    def _fill(self, display: SweepProgress, bar: Bar) -> None:
        """Settle, find again or submit points as long as there is room."""
        capacity = self.wanted.launcher.capacity(adaptive=self.wanted.sampler.adaptive)
        alive, todo = self.group.alive(), list[Point]()
        while len(self._open) < capacity and (point := self._next({p.index for p in todo})):
            if self._settled_already(point, display, bar):
                continue
            self._open.add(point.index)
            if point.index in alive or self.sweep.is_running(point.index):
                display.resumed(point)
            else:
                todo.append(point)
        if todo:
            self._submit(todo)
            display.submitted(todo)

    def _next(self, taken: set[int]) -> Point | None:
        """A known point that this pass has not tried, else a new one of the sampler's."""
        for point in self.sweep.points:
            if point.index not in self.results and point.index not in self._open | taken:
                return point
        trial = self.wanted.sampler.ask(self._search())
        if trial is None:
            return None
        words = chosen_words(self.wanted.words, trial.chosen)
        point = Point(len(self.sweep.points), words, trial.chosen, memory=trial.memory)
        self.sweep.points.append(point)
        self.sweep.write()
        return point

    def _settled_already(self, point: Point, display: SweepProgress, bar: Bar) -> bool:
        """Plan the point; whether it is pruned, faulty or finished, so that nothing has to run."""
        result = Result("pruned", point.run) if point.pruned else None
        try:
            pipeline = self.pipelines[point.index] = point_pipeline(point.words, self.sweep.verb)
        except LccError as error:
            if result is None:
                result = Result("failed", error=str(error), exit_code=error.exit_code)
                self.sweep.keep_result(point.index, result)
            self._settle(point, result, display, bar)
            return True
        if len(self.pipelines) == 1:
            check_steps(pipeline, self.wanted.search.objectives)
        point.run = run_name(pipeline)
        known = self.sweep.result(point.index)
        if known and known.status == "finished" and known.run == point.run and _is_whole(pipeline):
            result = known
        if result is not None:
            self._settle(point, result, display, bar, reused=True)
        return result is not None

    def _submit(self, todo: list[Point]) -> None:
        for point in todo:
            point.submitted = True
            earlier = self.sweep.result(point.index)
            if earlier is not None:  # what it said then must not be taken for its word now
                again = Result("queued", point.run, attempts=earlier.attempts)
                self.sweep.keep_result(point.index, again)
        self.sweep.write()
        self.group.submit([self._task(point) for point in todo])

    def _task(self, point: Point) -> LaunchedTask:
        command = (sys.executable, "-m", "lcc.sweeps.point", str(self.sweep.folder), str(point.index))
        return LaunchedTask(
            point.index,
            command,
            self.sweep.log(point.index).absolute(),
            Path.cwd(),
            os.environ.get("PYTHONPATH", ""),
        )

    def _look(self, display: SweepProgress, bar: Bar) -> None:
        """Settle every open point whose process is gone."""
        alive = self.group.alive()
        for index in sorted(self._open - alive):
            if self.sweep.is_running(index):
                continue
            point, result = self.sweep.points[index], self.sweep.result(index)
            if result is None or result.status in ("queued", "running"):
                result = self._killed(point, result)
            self._open.discard(index)
            if point.pruned:
                self._settle(point, replace(result, status="pruned"), display, bar)
            elif result.status == "preempted" and (self._restarts[index] < self.wanted.launcher.restarts):
                self._restarts[index] += 1
                display.restarted(point, self._restarts[index])
            else:
                self._settle(point, result, display, bar)

    def _killed(self, point: Point, result: Result | None) -> Result:
        """The last word for a process that could not say one."""
        known = result or Result("failed", point.run)
        killed = replace(
            known,
            status="failed",
            exit_code=ResourceError.exit_code,
            error=f"the process {self.group.fate(point.index)}.",
        )
        self.sweep.keep_result(point.index, killed)
        return killed

    def _settle(
        self, point: Point, result: Result, display: SweepProgress, bar: Bar, *, reused: bool = False
    ) -> None:
        if result.status == "finished":
            facts = read_run(ROOT / result.run)
            point.values = values_of(facts, self.wanted.search.objectives)
        self.results[point.index] = result
        self._watch(point)
        self.sweep.write()
        display.ended(bar, point, result, reused=reused)

    def _prune(self) -> None:
        """Stop what is clearly worse than the others were at the same training step."""
        prunes = getattr(self.wanted.sampler, "prunes", None)
        if prunes is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + SECONDS_BETWEEN_CURVES
        for index in sorted(self._open):
            point = self.sweep.points[index]
            self._watch(point)
            if not point.pruned and prunes(self._search(), index):
                point.pruned = True
                self.sweep.write()  # before the process ends, which would read as preempted
                self.group.stop(index)

    def _watch(self, point: Point) -> None:
        column = getattr(self.wanted.sampler, "watch", None)
        if column and point.index in self.pipelines:
            point.curve = watched_curve(self.pipelines[point.index], column)

    def _search(self) -> Search:
        return replace(self.wanted.search, trials=tuple(map(self._trial, self.sweep.points)))

    def _trial(self, point: Point) -> SearchTrial:
        status = self._status(point)
        states: dict[str, TrialState] = {"finished": "finished", "pruned": "pruned", "": "running"}
        values = tuple(point.values[name] for name in self.wanted.search.objectives if status == "finished")
        curve = {int(step): value for step, value in point.curve.items()}
        return SearchTrial(point.chosen, states.get(status, "failed"), values, curve, point.memory)


def _is_whole(pipeline: Pipeline) -> bool:
    """Whether everything that its run made is still there."""
    store = Store(ROOT)
    return all(store.path(step.key).is_dir() for step in pipeline.steps)
