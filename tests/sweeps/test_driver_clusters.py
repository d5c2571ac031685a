"""A sweep on a real Slurm and a real Ray: what fails, is killed or preempted, and who goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import missing, slurm_cluster
from sweep_processes import DATA, Driven, Held, pid_of, statuses

from lcc.cli import main
from lcc.store.sweeps import Sweep

PLANS = ("w8", "w4", "nf4", "sparse50_wanda", "broken", "lowrank_compensated_w4")
BROKEN = "quantize: {quantizer: gptq, bits: 4, group_size: 1000}\n"  # found out at run time
WORDS = ("+recipe=tiny", "scale=smoke", "~stages.bench", f"plan={','.join(PLANS)}",
         "objectives={bits_per_byte: minimize, bytes: minimize}")  # fmt: skip
SHARED = ("data", "vocab", "finetune")
pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Slurm's commands find a cluster of this machine's two cores."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'lcc[slurm]'")
    reason = missing()
    if reason:
        pytest.skip(reason)
    with (
        slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        yield


def launched(launcher: str) -> list[str]:
    if launcher == "slurm":
        return [
            "launcher=slurm",
            "launcher.partition=test",
            "launcher.memory_gb=1",
            "launcher.array_parallelism=2",
            "launcher.minutes=60",
        ]
    return ["launcher=ray"]


def said(text: str, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The transcript, for whoever runs this with -s."""
    with capsys.disabled():
        print(f"--- {title}\n{text}", flush=True)


def kept_out(sweep: Sweep, word: str) -> int:
    """How many lines of all logs hold `word`."""
    logs = [sweep.log(point.index) for point in sweep.points]
    return sum(len(re.findall(word, log.read_text())) for log in logs if log.is_file())


def test_points_on_a_real_slurm_are_found_again_by_the_driver_that_follows(
    slurm: None, tmp_path: Path
) -> None:
    words = (*DATA, *launched("slurm"))
    held = Held(tmp_path, "tiny_text")
    first = Driven(tmp_path, *words)
    sweep = first.until(lambda sweep: statuses(sweep) == ["running", "finished"])
    point = pid_of(sweep, 0)
    first.process.kill()
    first.wait()
    second = Driven(tmp_path, *words)
    second.until(lambda sweep: sweep.leases.holder("driver") is not None)
    assert pid_of(sweep, 0) == point
    held.release()
    code, out = second.wait()
    assert code == 0, out
    assert "[1/2] tiny_text: found again" in out and "submitted" not in out
    assert "[2/2] tiny_en_zh: finished before" in out
    batches = json.loads((sweep.folder / "jobs.json").read_text())
    assert batches == [{"name": f"{sweep.folder.name}-0", "indices": [0, 1]}]
    assert not list(sweep.folder.rglob("*.pkl"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["slurm", "ray", "local"])
def test_a_sweep_survives_a_failing_point_a_killed_job_and_a_killed_driver(
    launcher: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if launcher == "slurm":
        request.getfixturevalue("slurm")
    elif launcher == "ray":
        pytest.importorskip("ray", reason="ray is not installed: pip install 'lcc[ray]'")
    (tmp_path / "configs" / "plan").mkdir(parents=True)
    (tmp_path / "configs" / "plan" / "broken.yaml").write_text(BROKEN)
    words = [*WORDS, *(launched(launcher) if launcher != "local" else ["launcher.workers=2"])]

    driven = Driven(tmp_path, *words)
    sweep = driven.until(lambda sweep: statuses(sweep).count("running") == 2)
    victim = statuses(sweep).index("running")
    os.kill(pid_of(sweep, victim), signal.SIGKILL)
    driven.until(lambda sweep: "finished" in statuses(sweep))
    driven.process.kill()
    first = driven.wait()[1]
    said(first, "first driver, killed", capsys)

    code, out = Driven(tmp_path, *words).wait()
    said(out, f"second driver, exit code {code}", capsys)
    assert code == 2, out
    by_plan = dict(zip(PLANS, statuses(driven.sweep), strict=True))
    assert {plan for plan, status in by_plan.items() if status != "finished"} == {"broken"}
    assert "finished before" in out
    for step in SHARED:
        assert kept_out(driven.sweep, rf"\] {step}: finished in") == 1, step
    results = {n: driven.sweep.result(n) for n in range(6) if n != PLANS.index("broken")}

    code, out = Driven(tmp_path, *words).wait()
    said(out, f"third driver, exit code {code}", capsys)
    assert out.count("submitted") == 1 and "submitted [5/6] broken\n" in out
    assert {n: driven.sweep.result(n) for n in results} == results
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["sweep", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [point["status"] for point in told["points"]].count("finished") == 5
    assert all(
        {"bits_per_byte", "bytes"} == point["values"].keys()
        for point in told["points"]
        if point["status"] == "finished"
    )
    assert (driven.sweep.folder / "report.html").is_file()


TRAINED = ("+recipe=tiny", "stages.finetune.epochs=20", "~stages.eval", "~stages.bench",
           "~stages.compress", "threads=1")  # fmt: skip


def weights(folder: Path) -> bytes:
    """The adapter that the finetune step of the only run below `folder` made."""
    (step,) = folder.glob("runs/*/*-finetune")
    (file,) = step.rglob("*.safetensors")
    return file.read_bytes()


@pytest.mark.slow
def test_a_preempted_slurm_job_is_queued_again_and_ends_with_the_same_weights(
    slurm: None, tmp_path: Path
) -> None:
    words = [*TRAINED, *launched("slurm")]
    swept, alone = tmp_path / "swept", tmp_path / "alone"
    swept.mkdir(), alone.mkdir()
    driven = Driven(swept, *words)

    def trains(sweep: Sweep) -> bool:
        curves = list((swept / "runs" / "work").glob("*/curves.jsonl"))
        return any(curve.read_text().count("\n") >= 3 for curve in curves)

    sweep = driven.until(trains)
    job = subprocess.run(
        ["squeue", "--noheader", "--format=%i", f"--name={sweep.folder.name}-0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # What Slurm sends ahead of a time limit or a preemption, to the processes of the job's step.
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    code, out = driven.wait()
    assert code == 0, out
    result = sweep.result(0)
    assert result is not None and result.attempts == 2
    log = sweep.log(0).read_text()
    assert "--- attempt 2" in log and "resum" in log, log
    (err,) = (sweep.folder / "jobs").glob(f"{job}_0_log.err")
    assert "Caught signal SIGUSR2" in err.read_text() and "DUE TO JOB REQUEUE" in err.read_text()
    done = subprocess.run([*Driven.command, "run", *TRAINED], cwd=alone, check=False)
    assert done.returncode == 0
    assert weights(swept) == weights(alone)
