"""The local launcher: places dealt out, logs kept, ends told, children ended with their driver."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from lcc.core.launching import Task
from lcc.methods.launchers.local import Local, LocalCrew, Place, places

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
WAIT = "import signal, sys\nprint('ready', flush=True)\nsignal.pause()"


def task(folder: Path, index: int, code: str) -> Task:
    return Task(index, (sys.executable, "-c", code), folder / f"{index}.log", folder)


def until_ended(crew: LocalCrew, index: int) -> None:
    deadline = time.monotonic() + 60
    while index in crew.alive() and time.monotonic() < deadline:
        os.sched_yield()
    assert index not in crew.alive()


def until_said(log: Path, word: str) -> None:
    deadline = time.monotonic() + 60
    while not (log.is_file() and word in log.read_text()) and time.monotonic() < deadline:
        os.sched_yield()
    assert word in log.read_text()


def test_cores_and_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    monkeypatch.setattr("lcc.methods.launchers.local.cores", lambda: 5)
    assert places(2) == [Place(0, 2, (0, 1), (2,)), Place(1, 2, (2, 3, 4), (3, 5))]
    assert [p.cores for p in places(1)] == [(0, 1, 2, 3, 4)]
    assert [(p.cores, p.gpus) for p in places(7)][5:] == [((0,), (5,)), ((1,), (2,))]


def test_a_worker_sees_its_share_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = """
import os
print(sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"],
      os.environ["CUDA_VISIBLE_DEVICES"], os.getpid() == os.getsid(0))"""
    crew = LocalCrew([Place(0, 3, (min(CORES),), (4, 6))])
    crew.submit([task(tmp_path, 0, code)])
    until_ended(crew, 0)
    assert (tmp_path / "0.log").read_text() == f"[{min(CORES)}] 3 4,6 True\n"
    assert os.sched_getaffinity(0) == CORES  # the driver keeps its own


def test_a_log_keeps_both_streams_of_every_attempt(tmp_path: Path) -> None:
    crew = Local(workers=1).open(tmp_path, "sweep")
    assert isinstance(crew, LocalCrew)
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    for _ in range(2):
        crew.submit([task(tmp_path, 7, code)])
        until_ended(crew, 7)
    assert (tmp_path / "7.log").read_text() == "out\nerr\n" * 2
    assert crew.fate(7) == "ended with exit code 3 and without a word of its own"


def test_a_killed_child_is_told_by_its_signal(tmp_path: Path) -> None:
    crew = LocalCrew([Place(0, 1)])
    crew.submit([task(tmp_path, 0, "import os; os.kill(os.getpid(), 9)")])
    until_ended(crew, 0)
    assert crew.fate(0) == "was killed by SIGKILL"


def test_closing_asks_every_child_to_end_and_waits(tmp_path: Path) -> None:
    saves = """
import signal, sys
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    signal.pause()"""
    crew = LocalCrew([Place(0, 1), Place(1, 1)])
    crew.submit([task(tmp_path, n, saves) for n in range(2)])
    for n in range(2):
        until_said(tmp_path / f"{n}.log", "ready")
    assert crew.alive() == {0, 1}
    assert crew.close() == ""
    assert crew.alive() == set()
    assert [(tmp_path / f"{n}.log").read_text() for n in range(2)] == ["ready\nsaved\n"] * 2


def test_one_child_can_be_stopped_and_its_place_is_free_again(tmp_path: Path) -> None:
    crew = LocalCrew([Place(0, 1)])
    crew.submit([task(tmp_path, 0, WAIT)])
    until_said(tmp_path / "0.log", "ready")
    crew.stop(0)
    until_ended(crew, 0)
    assert crew.fate(0) == "was killed by SIGTERM"
    crew.submit([task(tmp_path, 1, "pass")])
    until_ended(crew, 1)
