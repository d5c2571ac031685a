"""Launchers: places dealt out, logs kept, ends told, jobs found again; what is missing is said."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from lcc.config.cards import Mistakes, decode
from lcc.core.errors import ResourceError
from lcc.methods.launchers import LaunchedTask
from lcc.methods.launchers.local import CoreShare, Local, LocalCrew, places
from lcc.methods.launchers.ray import Ray
from lcc.methods.launchers.slurm import Slurm, SlurmCrew

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
WAIT = "import signal, sys\nprint('ready', flush=True)\nsignal.pause()"


def task(folder: Path, index: int, code: str) -> LaunchedTask:
    return LaunchedTask(index, (sys.executable, "-c", code), folder / f"{index}.log", folder)


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
    assert places(2) == [CoreShare(0, 2, (0, 1), (2,)), CoreShare(1, 2, (2, 3, 4), (3, 5))]
    assert [p.cores for p in places(1)] == [(0, 1, 2, 3, 4)]
    assert [(p.cores, p.gpus) for p in places(7)][5:] == [((0,), (5,)), ((1,), (2,))]


def test_a_worker_sees_its_share_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = """
import os
print(sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"],
      os.environ["CUDA_VISIBLE_DEVICES"], os.getpid() == os.getsid(0))"""
    crew = LocalCrew([CoreShare(0, 3, (min(CORES),), (4, 6))])
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
    crew = LocalCrew([CoreShare(0, 1)])
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
    crew = LocalCrew([CoreShare(0, 1), CoreShare(1, 1)])
    crew.submit([task(tmp_path, n, saves) for n in range(2)])
    for n in range(2):
        until_said(tmp_path / f"{n}.log", "ready")
    assert crew.alive() == {0, 1}
    assert crew.close() == ""
    assert crew.alive() == set()
    assert [(tmp_path / f"{n}.log").read_text() for n in range(2)] == ["ready\nsaved\n"] * 2


def test_one_child_can_be_stopped_and_its_place_is_free_again(tmp_path: Path) -> None:
    crew = LocalCrew([CoreShare(0, 1)])
    crew.submit([task(tmp_path, 0, WAIT)])
    until_said(tmp_path / "0.log", "ready")
    crew.stop(0)
    until_ended(crew, 0)
    assert crew.fate(0) == "was killed by SIGTERM"
    crew.submit([task(tmp_path, 1, "pass")])
    until_ended(crew, 1)


def test_what_a_cluster_needs_and_lacks_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError) as caught:
        Slurm().open(tmp_path, "sweep")
    assert str(caught.value) == (
        "launcher=slurm: this machine has no sbatch; start the sweep where Slurm's commands are "
        "installed, or choose launcher=local."
    )
    for name in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ResourceError) as caught:
        Ray().open(tmp_path, "sweep")
    assert str(caught.value) == ("launcher=ray needs Ray; pip install 'lcc[ray]', or choose launcher=local.")
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ResourceError) as caught:
        Slurm().open(tmp_path, "sweep")
    assert str(caught.value) == (
        "launcher=slurm needs submitit; pip install 'lcc[slurm]', or choose launcher=local."
    )


def test_jobs_are_found_again_by_the_names_noted_before_they_were_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"""#!/bin/sh
case "$*" in *--name=s-0,s-1*) cat {tmp_path}/queue;; esac
""")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "queue").write_text(
        "7_0|s-0|COMPLETED\n7_1|s-0|OUT_OF_MEMORY\n7_2|s-0|RUNNING\n9|s-1|PENDING\n"
    )
    batches = [{"name": "s-0", "indices": [0, 3, 5]}, {"name": "s-1", "indices": [4]}]
    (tmp_path / "jobs.json").write_text(json.dumps(batches))
    crew = SlurmCrew(Slurm(), None, tmp_path, "s")
    assert crew.alive() == {4, 5}
    assert crew.fate(3) == "is gone without a word of its own (Slurm job 7_1: OUT_OF_MEMORY)"
    assert crew.close() == (
        "2 points go on in Slurm's queue; run the same command again to see how they end, or "
        "scancel --name=s-0,s-1 to end them."
    )
    # A point that was submitted anew is what its newest job is.
    (tmp_path / "queue").write_text("10|s-1|RUNNING\n9|s-1|FAILED\n7_2|s-0|COMPLETED\n")
    assert crew.alive() == {4}


def test_only_names_reach_the_script_that_slurm_runs() -> None:
    with pytest.raises(Mistakes, match="should match pattern"):
        decode(Slurm, {"partition": "gpu\nrm"})
    parameters = Slurm(partition="gpu", gpus=2, memory_gb=8, requeue=False).parameters("s-0")
    assert parameters["mem"] == "8GB" and parameters["gpus_per_node"] == 2
    assert parameters["additional_parameters"] == {"no-requeue": True}
    assert "qos" not in parameters
