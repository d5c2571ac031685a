"""`lcc store`: what a person sees and what a program reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcc.cli import main
from lcc.store.artifact import Work
from lcc.store.store import Store

KEY = "ab" * 32


@pytest.fixture(autouse=True)
def a_store_with_one_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(Path("runs"))
    with store.claim(KEY) as work:
        assert isinstance(work, Work)
        (work.path / "weights").write_text("x" * 5000)
        store.publish(work, report={"name": "heal\x1b[2J", "kind": "finetune"})


def out(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["store", *words]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_ls_shows_twelve_figures_of_the_key_and_no_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    head, row = out(capsys, "ls").splitlines()
    assert head.split()[:3] == ["KEY", "KIND", "STEP"]
    assert row.startswith(f"{KEY[:12]}  finetune  heal")
    assert row.endswith("nobody")
    assert "\x1b" not in row


def test_ls_and_du_speak_json(capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = json.loads(out(capsys, "ls", "--json"))
    assert entry["key"] == KEY
    facts = json.loads(out(capsys, "du", "--json"))
    assert facts["store"] == facts["freeable"] == entry["bytes"]


def test_a_pin_keeps_and_its_removal_frees(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "pin", "abab") == f"pinned abab ({KEY[:12]})\n"
    assert out(capsys, "ls").splitlines()[1].endswith("pinned")
    assert out(capsys, "gc") == "freed 0 B in 0 folders.\n"
    out(capsys, "unpin", "abab")
    assert "would free 5." in out(capsys, "gc", "--dry-run")
    assert "in 1 folder." in out(capsys, "gc")
    assert out(capsys, "ls") == "the store below runs/ is empty.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pni"], "lcc: lcc store has no 'pni'. Did you mean 'pin'?"),
        (["pin"], "lcc: name what is to be pinned"),
        (["gc", "all"], "lcc: lcc store gc takes no names, got 'all'."),
    ],
)
def test_a_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert out(capsys, *words, code=2).startswith(message)
