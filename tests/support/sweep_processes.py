"""Sweeps in processes of their own, whose points stop where a test wants them to."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lcc.pipeline.planner import pipeline_of
from lcc.store.store import Store
from lcc.store.sweeps import Sweep, find_sweep, read_sweep

DATA = ["task=generation", "dataset=tiny_text,tiny_en_zh"]  # the cheapest points there are
SECONDS = 1500.0  # a machine that does much else is no failure


class Driven:
    """`lcc run -m WORDS` in `folder`, as its own process."""

    command = (sys.executable, "-m", "lcc")

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*self.command, "run", "-m", *words],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> tuple[int, str]:
        """Its exit code, and everything it printed."""
        out, _ = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out

    @property
    def sweep(self) -> Sweep:
        return read_sweep(find_sweep(None, self.folder / "runs"))

    def until(self, holds: Callable[[Sweep], bool]) -> Sweep:
        """Wait for a state of the sweep, for as long as the driver or a point lives."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if list((self.folder / "runs").glob("*/sweep.json")) and holds(self.sweep):
                return self.sweep
            time.sleep(0.1)  # what is waited for needs the processor more than we do
        raise AssertionError(f"never came: {[self.sweep.status(p) for p in self.sweep.points]}")


class Held:
    """The data step of one dataset, held by this test: points that need it wait for us."""

    def __init__(self, folder: Path, dataset: str) -> None:
        step = pipeline_of(["task=generation", f"dataset={dataset}"], "run").step("data")
        lease = Store(folder / "runs").leases.try_acquire(step.key)
        assert lease is not None
        self.release = lease.release


def statuses(sweep: Sweep) -> list[str]:
    return [sweep.status(point) for point in sweep.points]


def pid_of(sweep: Sweep, index: int) -> int:
    """The process that runs the point."""
    holder = sweep.leases.holder(f"{index:03d}")
    assert holder is not None
    return holder.pid
