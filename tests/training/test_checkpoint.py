"""Training state: two generations, every byte of them verified before a tensor is used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lcc.store import artifact
from lcc.training.checkpoint import generations, load_state, newest_state, read_state, write_state


def write(folder: Path, step: int) -> Path:
    """A generation whose every number tells its step."""
    tensors = {
        "trainable": {"weight": torch.full((4, 8), float(step))},
        "optimizer": {"0/exp_avg": torch.full((4, 8), -float(step)), "0/step": torch.tensor(step)},
        "best": {},
    }
    write_state(folder, step, facts={"counters": {"step": step}}, tensors=tensors)
    return folder / f"step-{step:09d}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two generations, after steps 2 and 4."""
    for step in (2, 4):
        write(tmp_path / "key" / "state", step)
    return tmp_path / "key" / "state"


def test_what_was_written_is_read_back(folder: Path) -> None:
    saved = read_state(folder, pytest.fail)
    assert saved is not None
    assert saved.facts == {"counters": {"step": 4}}
    assert saved.tensors.keys() == {"trainable", "optimizer", "best"}
    assert torch.equal(saved.tensors["trainable"]["weight"], torch.full((4, 8), 4.0))
    assert saved.tensors["optimizer"]["0/step"] == 4
    assert dict(saved.tensors["best"]) == {}


def test_the_two_newest_are_kept_and_nothing_else(folder: Path) -> None:
    write(folder, 6)
    assert [path.name for path in generations(folder)] == ["step-000000006", "step-000000004"]
    assert {path.name for path in folder.iterdir()} == {"step-000000006", "step-000000004"}


def test_the_same_step_again_writes_nothing(folder: Path) -> None:
    before = {p: p.stat().st_ino for p in folder.rglob("*")}
    write(folder, 4)
    assert {p: p.stat().st_ino for p in folder.rglob("*")} == before


def flip(file: Path, seed: int = 0) -> None:
    data = bytearray(file.read_bytes())
    bit = random.Random(f"{file.name} {seed}").randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def swap(file: Path) -> None:
    shutil.copy(file.parent.parent / "step-000000002" / file.name, file)


FILES = ("trainable.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, cut, grow, swap, Path.unlink])
def test_a_damaged_generation_is_named_set_aside_and_the_one_before_used(
    folder: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    damage(folder / "step-000000004" / name)
    told: list[str] = []
    saved = read_state(folder, told.append)
    assert saved is not None and saved.facts["counters"]["step"] == 2
    assert torch.equal(saved.tensors["trainable"]["weight"], torch.full((4, 8), 2.0))
    assert len(told) == 1
    assert told[0].startswith("the training state step-000000004 is damaged: ")
    assert name in told[0] or name == "MANIFEST.json"  # whose flipped bit may be in another's name
    assert "it was moved to " in told[0]
    assert (folder / "damaged-step-000000004").is_dir()


@pytest.mark.parametrize("name", FILES)
def test_whatever_bit_is_flipped_it_is_found(folder: Path, name: str) -> None:
    newest = folder / "step-000000004"
    original = (newest / name).read_bytes()
    for seed in range(40):
        (newest / name).write_bytes(original)
        flip(newest / name, seed)
        with pytest.raises(artifact.Damage):
            artifact.verify(newest, key="key/step-000000004")


def test_another_trainings_state_is_not_taken_for_ones_own(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other" / "state", 6)
    other.rename(folder / other.name)
    told: list[str] = []
    newest = newest_state(folder, told.append)
    assert newest is not None and newest.name == "step-000000004"
    assert "MANIFEST.json is not one of format 1 for this key" in told[0]


def test_a_stray_file_in_a_generation_is_no_part_of_it(folder: Path) -> None:
    shutil.copy(
        folder / "step-000000004" / "best.safetensors", folder / "step-000000004" / "other.safetensors"
    )
    told: list[str] = []
    newest = newest_state(folder, told.append)
    assert newest is not None and newest.name == "step-000000002"
    assert "other.safetensors is not in its manifest" in told[0]


def test_without_a_sound_generation_training_begins_anew(folder: Path) -> None:
    for path in generations(folder):
        cut(path / "state.json")
    told: list[str] = []
    assert read_state(folder, told.append) is None
    assert len(told) == 2
    assert json.loads((folder / "damaged-step-000000002" / "MANIFEST.json").read_text())


def test_a_damaged_step_is_written_again(folder: Path) -> None:
    flip(folder / "step-000000004" / "trainable.safetensors")
    assert newest_state(folder, lambda sentence: None) == folder / "step-000000002"
    newest = write(folder, 4)
    assert newest_state(folder, pytest.fail) == newest
    assert load_state(newest).facts == {"counters": {"step": 4}}
