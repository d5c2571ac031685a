"""`lcc report` shows the last run, or the named one, and writes both files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lcc.cli import main


@pytest.fixture
def here(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run_folder.parents[1])
    return run_folder


def test_the_last_run_is_shown_and_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    shown = capsys.readouterr().out
    assert "finetune takes BLEU from 21.6 to 37.4" in shown
    assert f"runs/{here.name}/report.html" in shown
    assert (here / "report.md").is_file() and (here / "report.html").is_file()


def test_json_is_the_facts_and_nothing_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", here.name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["run"] == here.name
    assert [c["checkpoint"] for c in facts["checkpoints"]][-1] == "quantize"


def test_an_unknown_run_is_a_mistake_of_the_user(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "mt_en_zh_smal-1a2b"]) == 2
    assert capsys.readouterr().err.startswith("lcc: no run is named 'mt_en_zh_smal-1a2b'. Did you")
    assert main(["report", "a", "b"]) == 2


def test_a_report_needs_no_torch(here: Path) -> None:
    code = (
        "import sys; from lcc.cli import main; main(['report'])\n"
        "print([m for m in ('torch', 'transformers', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
