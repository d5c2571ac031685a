"""Killed, failed and filled at any moment, nothing is lost; `make soak` does it at length."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOWS = ("ENOSPC", "EIO", "kill", "power cut")
Amount = Callable[[int, int], int]
Harness = Callable[..., dict[str, Any]]


def test_killed_runs_end_with_the_same_weights_and_losses(
    harness: Harness, amount: Amount, note: Callable[..., None]
) -> None:
    counts = harness("kills.py", amount(200, 3))
    note("SIGKILLs", **counts)
    assert counts["losses"] == 0
    assert counts["kills"] >= amount(200, 3)


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of its own and of few bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a file system of a given size")
    command = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system of a given size can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_with_6_and_keeps_the_last_state(
    small_disk: Path, harness: Harness, amount: Amount, note: Callable[..., None]
) -> None:
    counts = harness("full_disk.py", small_disk, amount(24, 1))
    note("full disks", **{**counts, "losses": len(counts["losses"])})
    assert counts["losses"] == []
    assert counts["in_saves"] >= amount(24, 1)
    assert counts["in_results"] >= 1
    assert counts["refused_before"] == 1
