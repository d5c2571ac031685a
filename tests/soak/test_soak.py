"""Killed, failed and filled at any moment, nothing is lost; `make soak` does it at length."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HOWS = ("ENOSPC", "EIO", "kill", "power cut")
Amount = Callable[[int, int], int]
Harness = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | str]:
    """A file system of its own and of few bytes; or why there is none."""
    place = tmp_path_factory.mktemp("disk")
    if shutil.which("mount") is None or os.geteuid() != 0:
        yield "only root can mount a file system of a given size"
        return
    command = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield f"no file system of a given size can be mounted here: {done.stderr.strip()}"
        return
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def forked(small_disk: Path | str, harness: Harness, amount: Amount) -> dict[str, Any]:
    """Everything that forks trainings, one after another from one process."""
    plan: dict[str, list[Any]] = {"kills": [amount(200, 3)]}
    if isinstance(small_disk, Path):
        plan["full_disk"] = [str(small_disk), amount(24, 1)]
    return harness("together.py", json.dumps({**plan, "rank_poison": [amount(60, 4)]}))


def test_killed_runs_end_with_the_same_weights_and_losses(
    forked: dict[str, Any], amount: Amount, note: Callable[..., None]
) -> None:
    counts = forked["kills"]
    note("SIGKILLs", **counts)
    assert counts["losses"] == 0
    assert counts["kills"] >= amount(200, 3)


def test_what_one_rank_of_two_spoils_no_rank_takes_up(
    forked: dict[str, Any], amount: Amount, note: Callable[..., None]
) -> None:
    counts = forked["rank_poison"]
    note("poisoned steps (one rank)", **{**counts, "taken_up": len(counts["taken_up"])})
    assert counts["taken_up"] == []
    assert counts["injections"] >= amount(60, 4)


def test_any_fault_in_a_save_leaves_the_old_state_or_the_new(
    harness: Harness, amount: Amount, note: Callable[..., None]
) -> None:
    counts = harness("state_faults.py", amount(1, 9))
    note("faults in saves of training state", **{**counts, "losses": len(counts["losses"])})
    assert counts["operations"] > 30
    assert counts["ended_by_it"] > sum(counts[how] for how in HOWS) // 2
    assert counts["losses"] == []


def test_any_fault_on_the_way_to_the_store_loses_nothing(
    harness: Harness, amount: Amount, note: Callable[..., None]
) -> None:
    counts = harness("store_faults.py", amount(1, 5))
    note("faults in publishing", **{**counts, "losses": len(counts["losses"])})
    assert counts["operations"] > 30
    assert counts["ended_by_it"] > sum(counts[how] for how in HOWS) // 2
    assert counts["losses"] == []


def test_a_full_disk_stops_with_6_and_keeps_the_last_state(
    forked: dict[str, Any], small_disk: Path | str, amount: Amount, note: Callable[..., None]
) -> None:
    if isinstance(small_disk, str):
        pytest.skip(small_disk)
    counts = forked["full_disk"]
    note("full disks", **{**counts, "losses": len(counts["losses"])})
    assert counts["losses"] == []
    assert counts["in_saves"] >= amount(24, 1)
    assert counts["in_results"] >= 1
    assert counts["refused_before"] == 1
