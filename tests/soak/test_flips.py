"""A flipped bit, a missing end, a file of another: it is found before anything of it is used."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from lcc.store.artifact import Work
from lcc.store.store import Store
from lcc.training.checkpoint import generations, load_state, newest_state, step_of, write_state

Amount = Callable[[int, int], int]
KEYS = ("ab" * 32, "cd" * 32)
KINDS = ("flip", "cut", "swap")


def published(root: Path) -> Store:
    """Two artifacts with files of the same names and sizes, and other bytes."""
    store = Store(root, warn=lambda sentence: None)
    for number, key in enumerate(KEYS):
        with store.claim(key) as work:
            assert isinstance(work, Work)
            (work.path / "model").mkdir()
            for name in ("config.json", "model.safetensors", "tokenizer.json"):
                content = random.Random(f"{name} {number}").randbytes(3000)
                (work.path / "model" / name).write_bytes(content)
            store.publish(work, report={"name": f"step{number}", "kind": "finetune"})
    return store


def saved(folder: Path) -> Path:
    """Two generations of the same shapes."""
    for step in (3, 5):
        torch.manual_seed(step)
        tensors = {
            "trainable": {"weight": torch.randn(20, 20)},
            "optimizer": {"0/exp_avg": torch.randn(20, 20)},
        }
        write_state(folder, step, facts={"counters": {"step": step}}, tensors=tensors)
    return folder


def spoil(file: Path, other: Path, kind: str, dice: random.Random) -> str:
    """Damage `file` in place; what was done to it."""
    data = bytearray(file.read_bytes())
    if kind == "swap":
        shutil.copyfile(other, file)
        return f"{file.name} is {other.parent.name}'s"
    if kind == "cut":
        del data[dice.randrange(len(data)) :]
    else:
        bit = dice.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return f"{kind} of {file.name}"


def test_no_damaged_artifact_is_found_in_the_store(
    tmp_path: Path, amount: Amount, note: Callable[..., None]
) -> None:
    store, dice, counts = published(tmp_path), random.Random("store"), dict.fromkeys(KINDS, 0)
    whole = shutil.copytree(store.path(KEYS[0]), tmp_path / "whole")
    other, missed = store.path(KEYS[1]), []
    for _ in range(amount(300, 40)):
        file = dice.choice(sorted(p for p in store.path(KEYS[0]).rglob("*") if p.is_file()))
        kind = dice.choice(KINDS)
        what = spoil(file, other / file.relative_to(store.path(KEYS[0])), kind, dice)
        counts[kind] += 1
        if store.find(KEYS[0]) is not None:
            missed.append(what)
        shutil.rmtree(store.path(KEYS[0]), ignore_errors=True)
        shutil.copytree(whole, store.path(KEYS[0]))
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
    note("damages in the store", **counts, missed=len(missed))
    assert missed == []
    assert store.find(KEYS[0]) is not None


def test_no_damaged_training_state_is_used(tmp_path: Path, amount: Amount, note: Callable[..., None]) -> None:
    folder = saved(tmp_path / "key" / "state")
    whole = shutil.copytree(folder, tmp_path / "whole")
    dice, counts, missed = random.Random("state"), dict.fromkeys(KINDS, 0), []
    for _ in range(amount(300, 40)):
        newest, older = generations(folder)
        file = dice.choice(sorted(newest.iterdir()))
        kind = dice.choice(KINDS)
        what = spoil(file, older / file.name, kind, dice)
        counts[kind] += 1
        told: list[str] = []
        used = newest_state(folder, told.append)
        if used is None or step_of(used) != 3 or len(told) != 1:
            missed.append(what)
        else:
            load_state(used)
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    note("damages in training state", **counts, missed=len(missed))
    assert missed == []
