"""The same command on two nodes: one run, made by the first with the help of the second."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_nodes_make_one_run(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        "+recipe=tiny",
        "scale=smoke",
        "distributed=fsdp",
        "distributed.nodes=2",
        f"distributed.rendezvous=127.0.0.1:{port}",
        "--json",
    ]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "lcc", "finetune", *words],
            cwd=tmp_path,
            text=True,
            env={**os.environ, "SLURM_NODEID": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in (1, 0)
    ]
    second, first = (node.communicate(timeout=580)[0] for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0]
    steps = json.loads(first)["steps"]
    assert {step["status"] for step in steps} == {"finished"} and not second
    trained = next(step for step in steps if step["kind"] == "finetune")
    report = tmp_path / "runs" / "store" / trained["key"] / "report.json"
    assert json.loads(report.read_text(encoding="utf-8"))["measures"]["processes"]["value"] == 2
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 1
