"""A lost process starts its group again; a refusal does not; who hangs is found; nodes meet."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lcc.core.errors import DataError, RecipeError, ResourceError
from lcc.distributed.dist import Dist, Distributed, node_rank
from lcc.distributed.elastic import GONE, SILENT, lost_sentence
from lcc.distributed.launch import launch

TWO = Distributed(world_size=2, max_restarts=1)


def dies(dist: Dist, folder: str, times: int) -> dict[str, Any]:
    """Rank 1 is killed in the group's first `times` attempts."""
    attempts = Path(folder) / f"attempts-{dist.rank}"
    attempts.write_text(attempts.read_text() + "x" if attempts.is_file() else "x")
    if dist.rank == 1 and len(attempts.read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    return {"restarts": list(dist.restarts), "attempts": len(attempts.read_text())}


def refuses(dist: Dist, folder: str) -> None:
    attempts = Path(folder) / f"attempts-{dist.rank}"
    attempts.write_text(attempts.read_text() + "x" if attempts.is_file() else "x")
    if dist.rank == 1:
        raise DataError("row 7 has no text.")
    dist.barrier()


def hangs(dist: Dist) -> None:
    if dist.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()


def meets(dist: Dist, folder: str) -> list[float]:
    """On the first attempt the second node's process is killed."""
    torch.set_num_threads(1)
    attempts = Path(folder) / f"attempts-{dist.rank}"
    attempts.write_text(attempts.read_text() + "x" if attempts.is_file() else "x")
    if dist.rank == 1 and len(attempts.read_text()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return [*dist.sum([dist.rank + 1]), dist.local_size, len(attempts.read_text())]


KILLED = "process 1 was killed by SIGKILL (the system does that when memory runs out)."


def test_a_killed_process_starts_the_group_again(tmp_path: Path) -> None:
    assert launch(dies, TWO, str(tmp_path), 1) == {"restarts": [KILLED], "attempts": 2}


@pytest.mark.slow
def test_restarts_are_used_up_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        launch(dies, TWO, str(tmp_path), 9)
    assert str(caught.value) == f"distributed: {KILLED} It was started again 1 of 1 times."
    assert (tmp_path / "attempts-1").read_text() == "xx"


@pytest.mark.slow
def test_a_refusal_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 7 has no text"):
        launch(refuses, TWO, str(tmp_path))
    assert (tmp_path / "attempts-1").read_text() == "x"


@pytest.mark.slow
def test_a_process_that_hangs_is_found_out() -> None:
    with pytest.raises(ResourceError) as caught:
        launch(hangs, Distributed(world_size=2, max_restarts=0, timeout=5))
    assert str(caught.value) == (
        "distributed: process 0 waited 5 s (distributed.timeout) for the other processes: one of them hangs."
    )


@pytest.mark.slow
def test_two_nodes_meet_and_start_again_together(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, str(tmp_path), f"127.0.0.1:{port}"]
    nodes = [
        subprocess.Popen(
            command, env={**os.environ, "LCC_NODE_RANK": str(rank)}, text=True, stdout=subprocess.PIPE
        )
        for rank in (1, 0)
    ]
    second, first = (node.communicate(timeout=240)[0] for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0]
    assert json.loads(first) == [3, 1, 2]
    assert json.loads(second) is None


@pytest.mark.parametrize(
    "words, kind",
    [
        ("[gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1", GONE),
        ("Timed out waiting 5000ms for recv operation to complete", SILENT),
    ],
)
def test_a_failed_collective_says_what_is_wrong_with_the_others(words: str, kind: str) -> None:
    found = lost_sentence(RuntimeError(words), 0, 5)
    assert found is not None and found[0] == kind
    assert lost_sentence(RuntimeError("shapes differ"), 0, 5) is None


def test_which_node_this_is_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Distributed(world_size=4, nodes=2, rendezvous="first:29500")
    for name in ("LCC_NODE_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RecipeError, match="which of 2 nodes this is must stand in one of"):
        node_rank(nodes)
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert node_rank(nodes) == 1
    monkeypatch.setenv("LCC_NODE_RANK", "2")
    with pytest.raises(RecipeError, match="not '2'"):
        node_rank(nodes)


if __name__ == "__main__":
    chosen = Distributed(world_size=2, nodes=2, rendezvous=sys.argv[2], max_restarts=1)
    print(json.dumps(launch(meets, chosen, sys.argv[1], name="nodes")))
