"""Launch points as processes of this machine, its cores and GPUs dealt out among them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.machine import accelerators, cores
from lcc.methods.launchers import RESTARTS, LaunchedTask, TaskGroup
from lcc.methods.launchers._commands import ask_to_end, end, exit_sentence, start


@card
class Local:
    """`workers` points at a time; each gets its share of the cores, and of the GPUs where any are.

    A point that runs when its driver is killed runs on, and the same command finds it again.
    """

    word: ClassVar[str] = "local"
    revision: ClassVar[int] = 1
    restarts: ClassVar[int] = RESTARTS

    workers: Annotated[int, Field(ge=1)] = 1

    def capacity(self, *, adaptive: bool) -> int:
        return self.workers

    def open(self, folder: Path, name: str) -> TaskGroup:
        return LocalCrew(places(self.workers))


@dataclass(frozen=True)
class CoreShare:
    """What one worker may use of this machine."""

    number: int
    threads: int
    cores: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The same for libraries that ask the environment; a smaller wish of the user's stands."""
        asked = os.environ.get("OMP_NUM_THREADS", "")
        threads = min(int(asked), self.threads) if asked.isdigit() else self.threads
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))} if self.gpus else {}
        return {"OMP_NUM_THREADS": str(max(threads, 1)), **gpus}


def places(workers: int) -> list[CoreShare]:
    """The cores and GPUs of each worker: apart while there are enough, else shared in turns."""
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    usable, gpus = own[: cores()], _gpus()
    return [
        CoreShare(
            number,
            max(1, cores() // workers),
            tuple(_share(usable, number, workers)),
            tuple(_share(gpus, number, workers)),
        )
        for number in range(workers)
    ]


def _gpus() -> list[int]:
    """The numbers of the NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [int(number) for number in visible.split(",") if number.strip().isdigit()]
    return list(range(len(accelerators()))) if Path("/dev/nvidiactl").exists() else []


def _share(things: list[int], number: int, workers: int) -> list[int]:
    """The part of one worker: a run of neighbours, or one thing that several share."""
    if len(things) < workers:
        return [things[number % len(things)]] if things else []
    first, last = (len(things) * n // workers for n in (number, number + 1))
    return things[first:last]


class LocalCrew:
    """Children of this process, each in a place of its own."""

    poll_seconds = 0.2

    def __init__(self, free: list[CoreShare]) -> None:
        self._free = free
        self._running: dict[int, tuple[subprocess.Popen[bytes], CoreShare]] = {}
        self._fates: dict[int, str] = {}

    def submit(self, tasks: Sequence[LaunchedTask]) -> None:
        for task in tasks:
            place = self._free.pop(0)
            child = start(task, environment=place.environment, cores=place.cores)
            self._running[task.index] = (child, place)

    def alive(self) -> set[int]:
        for index, (child, place) in list(self._running.items()):
            code = child.poll()
            if code is not None:
                self._fates[index] = exit_sentence(code)
                del self._running[index]
                self._free = sorted([*self._free, place], key=lambda free: free.number)
        return set(self._running)

    def fate(self, index: int) -> str:
        return self._fates.get(index, "is gone without a word of its own")

    def stop(self, index: int) -> None:
        if index in self._running:
            ask_to_end(self._running[index][0])

    def close(self) -> str:
        children = [child for child, _ in self._running.values()]
        for child in children:
            ask_to_end(child)
        for child in children:
            end(child)
            child.wait()
        return ""
