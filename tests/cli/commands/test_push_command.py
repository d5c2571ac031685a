"""`lcc push` says what is missing, and lets nothing out that is damaged or was refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import saved

from lcc.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    saved("llama", tmp_path / "model")
    assert main(["export", "model=model", "--out", "made"]) == 0
    return tmp_path


def test_what_is_missing_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["push", "made", "repo=someone/model"]
    assert main(words) == 6
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(words) == 6
    assert "no token of the hub is here" in capsys.readouterr().err


def test_nothing_damaged_or_refused_leaves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "model", "repo=a/b"]) == 2
    assert main(["push", "made"]) == 2
    (here / "made" / "FAILED.json").write_text("{}")
    assert main(["push", "made", "repo=a/b"]) == 5
    assert "failed its parity gate" in capsys.readouterr().err
    (here / "made" / "FAILED.json").unlink()
    (here / "made" / "config.json").write_text("{}")
    assert main(["push", "made", "repo=a/b"]) == 4
    assert "config.json has" in capsys.readouterr().err
