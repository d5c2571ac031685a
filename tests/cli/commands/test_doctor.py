"""The doctor names what is there, what is missing, and how to get it."""

from __future__ import annotations

import json

import pytest

from lcc.cli import main
from lcc.cli.commands import doctor
from lcc.core import machine

HEALTHY = {"threads": 2, "cuda": False, "cuda_devices": [], "mps": False, "distributed": True}


@pytest.fixture
def torch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's answer without its seconds; the slow test below asks the real one."""
    monkeypatch.setattr(doctor, "_torch", lambda: HEALTHY)


def test_a_sound_machine_is_shown(torch_answers: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for words in ("python  ", "transformers  ", "cores  ", "memory  ", "free disk  ", "CPU (2 threads)"):
        assert words in shown


def test_a_missing_extra_is_named_with_the_way_to_get_it(
    torch_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = machine.version_of
    monkeypatch.setattr(machine, "version_of", lambda p: None if p == "wandb" else real(p))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "missing: wandb (for tracker=wandb)\n  get it: pip install 'lcc[wandb]'" in shown


def test_a_missing_core_package_or_an_unsafe_one_is_an_error(
    torch_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"peft": None, "torch": "2.9.1+cpu"}
    real = machine.version_of
    monkeypatch.setattr(machine, "version_of", lambda p: found[p] if p in found else real(p))
    assert main(["doctor", "--json"]) == 6
    missing = json.loads(capsys.readouterr().out)["missing"]
    needed = [finding["what"] for finding in missing if finding["needed"]]
    assert needed == ["torch 2.10 or newer (here: 2.9.1+cpu)", "peft"]


def test_doctor_takes_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "please"]) == 2


@pytest.mark.slow
def test_torch_itself_answers() -> None:
    told = doctor._torch()
    assert told["threads"] >= 1 and "error" not in told
