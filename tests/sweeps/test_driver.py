"""The driver with real processes: beside one another, apart, and never twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from sweep_processes import DATA, Driven, Held, pid_of, statuses

from lcc.cli import main
from lcc.store.sweeps import find_sweep, read_sweep


def test_a_killed_point_fails_alone_and_is_run_alone_by_the_same_command(tmp_path: Path) -> None:
    words = (*DATA, "launcher.workers=2")
    held = [Held(tmp_path, name) for name in ("tiny_text", "tiny_en_zh")]
    driven = Driven(tmp_path, *words)
    # Both run at one time: neither can end before the test lets it.
    sweep = driven.until(lambda sweep: statuses(sweep) == ["running", "running"])
    assert [sweep.log(n).is_file() for n in range(2)] == [True, True]
    os.kill(pid_of(sweep, 0), signal.SIGKILL)
    for one in held:
        one.release()
    code, out = driven.wait()
    assert code == 6, out
    log = sweep.log(0).relative_to(tmp_path)
    assert f"[1/2] tiny_text: the process was killed by SIGKILL. (log: {log})" in out
    assert statuses(driven.sweep) == ["failed", "finished"]
    before = driven.sweep.result(1)
    code, out = Driven(tmp_path, *words).wait()
    assert code == 0, out
    assert "submitted [1/2] tiny_text\n" in out and "[2/2] tiny_en_zh: finished before" in out
    assert statuses(driven.sweep) == ["finished", "finished"]
    assert driven.sweep.result(1) == before


def test_a_killed_driver_is_followed_by_one_that_finds_its_points(tmp_path: Path) -> None:
    held = Held(tmp_path, "tiny_text")
    first = Driven(tmp_path, *DATA)
    sweep = first.until(lambda sweep: statuses(sweep) == ["running"])
    point = pid_of(sweep, 0)
    first.process.kill()
    first.wait()
    second = Driven(tmp_path, *DATA)
    second.until(lambda sweep: sweep.leases.holder("driver") is not None)
    third = Driven(tmp_path, *DATA)
    code, out = third.wait()
    assert code == 8 and "is driven by" in out and "lcc sweep status" in out
    assert pid_of(second.sweep, 0) == point  # the very process that the first driver had started
    held.release()
    code, out = second.wait()
    assert code == 0, out
    assert "[1/2] tiny_text: found again" in out and "submitted [2/2] tiny_en_zh\n" in out
    result = second.sweep.result(0)
    assert result is not None and result.attempts == 1 and result.host.endswith(f":{point}")


def test_a_driver_told_to_stop_stops_its_points_and_goes_on_later(tmp_path: Path) -> None:
    held = Held(tmp_path, "tiny_text")
    driven = Driven(tmp_path, *DATA)
    sweep = driven.until(lambda sweep: statuses(sweep) == ["running"])
    driven.process.send_signal(signal.SIGTERM)
    code, out = driven.wait()
    assert code == 75 and "interrupted; run the same command again to continue." in out
    assert statuses(sweep) == ["preempted"] and not sweep.is_running(0)
    held.release()
    assert Driven(tmp_path, *DATA).wait()[0] == 0
    assert statuses(driven.sweep) == ["finished", "finished"]


def test_a_faulty_point_is_told_at_once_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-m", "task=generation", "dataset=tiny_txt,tiny_text"]) == 2
    told = capsys.readouterr()
    assert "dataset=tiny_txt: dataset: no dataset is named 'tiny_txt'. Did you mean" in told.err
    sweep = read_sweep(find_sweep(None))
    assert statuses(sweep) == ["failed", "finished"]
    assert "#2     tiny_text  finished" in told.out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["launcher=slrum"], "launcher: no launcher is named 'slrum'. Did you mean 'slurm'?"),
        (
            ["launcher.worker=2"],
            "command line 'launcher.worker=2': launcher.worker: unknown key "
            "'worker'. Did you mean 'workers'?",
        ),
        (["launcher=local,slurm"], "'launcher=local,slurm': a sweep has one launcher; write one value."),
        (
            ["launcher=slurm", "launcher.partition='a b'"],
            "command line 'launcher.partition='a b'': "
            "launcher.partition: string should match pattern '^[\\w.,:@&|+=\\-]+$', got \"a b\".",
        ),
        (
            ["sampler=random"],
            "sampler=random has nothing to choose; give a word a range, for example "
            "'stages.finetune.lr=tag(log,interval(1e-4,1e-2))' or plan=w8,nf4.",
        ),
        (
            ["objectives={bytes: least}"],
            "command line 'objectives={bytes: least}': objectives.bytes: "
            "\"least\" is not one of 'maximize' or 'minimize'.",
        ),
        (
            ["task=generation", "dataset=tiny_text", "objectives={eval.base.bleu: maximize}"],
            "objectives: 'eval.base.bleu' is measured by a step 'eval.base', which this recipe does not "
            "have. Allowed: data.",
        ),
        (
            ["seed=interval(0,1)"],
            "'seed': sampler=grid cannot try every number of an interval; list "
            "values (1e-4,1e-3), or choose sampler=random, tpe or nsga2.",
        ),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_told_in_a_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-m", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"lcc: {sentence}"
