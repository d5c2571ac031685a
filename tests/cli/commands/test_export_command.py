"""`lcc export` and `lcc verify`: folders in and out, exit codes, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exports import TEMPLATE, saved

from lcc.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    saved("llama", tmp_path / "model", template=TEMPLATE)
    return tmp_path


def test_a_folder_becomes_a_gguf_file_with_card_and_manifest(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cyllama", reason="llama.cpp is not installed: lcc[llamacpp]")
    words = ["model=./model", "format=gguf", "format.type=q8_0", "--out", "made", "--json"]
    assert main(["export", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parity"]["num_prompts"] == 200 and told["parity"]["same_template"] is True
    names = {file.name for file in (here / "made").iterdir()}
    assert {"model.gguf", "README.md", "MANIFEST.json", "export.json", "lcc_card.json"} <= names
    readme = (here / "made" / "README.md").read_text()
    assert readme.startswith("---\nlicense: ") and "## Parity" in readme and "## Limits" in readme
    assert main(["verify", "made"]) == 0
    assert "files" in capsys.readouterr().out


def test_a_changed_byte_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model=model", "--out", "made"]) == 0
    file = here / "made" / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    assert main(["verify", "made"]) == 4
    assert "model.safetensors has changed (SHA-256" in capsys.readouterr().err


def test_a_path_is_a_folder_also_without_the_word_model(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "./model", "--out", "made"]) == 0
    assert (here / "made" / "model.safetensors").is_file()
    assert main(["export", "./nowhere/model", "--out", "other"]) == 2
    assert "no run is named './nowhere'" in capsys.readouterr().err


def test_an_export_that_failed_its_gate_does_not_verify(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "model=model", "--out", "made"]) == 0
    (here / "made" / "FAILED.json").write_text("{}")
    assert main(["verify", "made"]) == 4
    assert "FAILED.json is not in its manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["model=model"], "say which model and where to"),
        (["model=model", "step", "--out", "x"], "say which model and where to"),
        (["model=model", "format=gguff", "--out", "x"], "no format is named 'gguff'. Did you mean"),
        (["model=model", "format=gguf", "format.type=q9", "--out", "x"], 'format.type: "q9" is not'),
        (["model=model", "format=hf", "format.bits=4", "--out", "x"], "format.bits: unknown key"),
        (["model=model", "form=hf", "--out", "x"], "export takes model=, format=NAME"),
        (["model=model", "--out", "model"], "model exists already"),
        (["model=nowhere", "--out", "x"], "'nowhere' is no step of the last run"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *words]) == 2
    assert message in capsys.readouterr().err


def test_verify_says_what_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 2
    assert main(["verify", "nowhere"]) == 2
    assert main(["verify", "model"]) == 4
    assert "MANIFEST.json is missing" in capsys.readouterr().err
