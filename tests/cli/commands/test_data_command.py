"""`lcc data` and `lcc fetch` tell what will happen before it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcc.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LCC_HOME", str(tmp_path / "home"))
    return tmp_path


def test_check_counts_and_proves_the_fence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "dataset=tiny_sentiment"]) == 0
    shown = capsys.readouterr().out
    assert "labelled text (text → 3 labels: negative, neutral, positive)" in shown
    assert "none stands in two splits" in shown
    assert "words in text: p5" in shown
    assert "warning: 9 test rows decide little" in shown


def test_check_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "dataset=tiny_en_zh", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == {"train": 40, "validation": 10, "test": 10}
    assert facts["reader"] == "jsonl"


def test_check_says_which_field_a_task_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "dataset=tiny_sentiment", "task=translation"]) == 3
    assert "task 'translation' needs the field 'source'" in capsys.readouterr().err


def test_check_leaves_nothing_behind(elsewhere: Path) -> None:
    assert main(["data", "check", "dataset=tiny_text"]) == 0
    assert list(elsewhere.iterdir()) == []


def test_preview_marks_what_the_loss_sees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "preview", "dataset=tiny_en_zh", "task=translation", "--json"]) == 0
    [example, *_] = json.loads(capsys.readouterr().out)
    assert example["prompt"].startswith("English: ")
    assert example["completion"].strip()
    assert "tokens" not in example


@pytest.mark.parametrize(
    ("model", "task", "dataset"),
    [("tiny_llama", "translation", "tiny_en_zh"), ("tiny_bert", "sentiment", "tiny_sentiment")],
)
def test_preview_shows_the_tokens_that_training_will_see(
    capsys: pytest.CaptureFixture[str], model: str, task: str, dataset: str
) -> None:
    words = [f"model={model}", f"task={task}", f"dataset={dataset}"]
    assert main(["data", "preview", *words, "--json"]) == 0
    [example, *_] = json.loads(capsys.readouterr().out)
    seen = "".join(token["text"] for token in example["tokens"] if token["loss"])
    if model == "tiny_llama":
        assert example["completion"].strip() in seen.replace(" ", "")
        assert example["prompt"] not in seen
    else:
        assert seen == ""  # a classifier's loss is on the class, not on tokens
    assert main(["data", "preview", *words]) == 0
    assert "▶" in capsys.readouterr().out


def test_fetch_says_what_how_large_and_which_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "dataset=packages_en_zh", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "package spyder==6.1.8: 14.5 MB, MIT, to fetch" in shown
    assert "to download: 39.7 MB" in shown


def test_fetching_what_is_local_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "dataset=tiny_text", "model=tiny_llama"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out


def test_without_a_network_fetch_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["fetch", "dataset=vader_movie"]) == 6
    [*_, said] = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("lcc: 'vaderSentiment==3.3.2' could not be downloaded: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data", "chek"], 2, "no action is named 'chek'. Did you mean 'check'?"),
        (["data", "check"], 2, "no dataset is chosen; add dataset=NAME."),
        (["fetch"], 2, "nothing to fetch"),
        (["data", "check", "dataset=vader_movie"], 3, "run: lcc fetch dataset=vader_movie"),
    ],
)
def test_a_mistake_is_one_message(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    assert main(words) == code
    assert message in capsys.readouterr().err
