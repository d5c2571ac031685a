"""Fail, kill and power-cut every file operation of a training-state save, one after another.

python tests/soak/state_faults.py FOLDER [EVERY]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import faults
import nursery
import torch

from lcc.core.errors import LccError
from lcc.training.checkpoint import generations, newest_state, read_state, write_state

OLD, NEW = (2, 4), 6
ENDS = {"ENOSPC": 6, "EIO": 4, "kill": -9, "power cut": -9}


def save(folder: Path, step: int) -> int:
    """Write a generation whose every number tells its step; an error's exit code."""
    tensors = {
        "trainable": {"a": torch.full((16, 16), float(step)), "b": torch.full((3,), float(step))},
        "optimizer": {"0/exp_avg": torch.full((16, 16), -float(step))},
        "best": {},
    }
    try:
        write_state(folder, step, facts={"counters": {"step": step}}, tensors=tensors)
    except LccError as error:
        print(f"said: {error}")
        return error.exit_code
    return 0


def prepared(folder: Path) -> Path:
    """Two generations, and what saves that were killed have left lying about."""
    for step in OLD:
        assert save(folder, step) == 0
    for left in ("building", "trash"):
        shutil.copytree(folder / "step-000000002", folder / left)
    return folder


def faulty(folder: Path, at: int | None, how: str) -> int:
    layer = faults.Layer(folder, at=at, how=how)
    faults.install(layer)
    code = save(folder, NEW)
    if at is None:
        (folder.parent / "operations.json").write_text(json.dumps(layer.log), encoding="utf-8")
    return code


def whole_step(folder: Path) -> int | None:
    """The step of the newest sound generation; None unless its every number is of that step."""
    told: list[str] = []
    saved = read_state(folder, told.append)
    if saved is None or told:
        return None
    step = int(saved.facts["counters"]["step"])
    tensors = [t.abs() for group in saved.tensors.values() for t in group.values()]
    return step if tensors and all(bool((t == step).all()) for t in tensors) else None


def trial(folder: Path, at: int, how: str, log: Path) -> tuple[str | None, bool]:
    """What went wrong when operation `at` fails in the way of `how`, and whether that was told."""
    prepared(folder)
    child = nursery.fork(lambda: faulty(folder, at, how), log)
    code = child.ended()
    return fault(folder, child, code, how, log), code != 0


def fault(folder: Path, child: nursery.Child, code: int, how: str, log: Path) -> str | None:
    """What is wrong with what the fault has left, or None."""
    found = whole_step(folder)
    if found not in (OLD[-1], NEW):
        return f"neither the old nor the new state is there, but {found}"
    if code not in (ENDS[how], 0):
        return f"ended with {code}: {child.told()}"
    if code == 0 and found != NEW:
        return "said that it had saved and had not"
    if how in ("ENOSPC", "EIO") and code and "the training state after step 6" not in child.told():
        return f"does not say what: {child.told()}"
    # And the next save, after a restart, mends everything.
    nursery.finished(lambda: save(folder, NEW), log)
    assert newest_state(folder, lambda sentence: None) is not None
    if whole_step(folder) != NEW:
        return "the save after it did not go well"
    if len(generations(folder)) > 2:
        return f"{len(generations(folder))} generations are left"
    return None


def main(folder: Path, every: int = 1) -> dict[str, Any]:
    """Every operation (or each `every`-th) in every way; counts and what was lost."""
    torch.set_num_threads(1)
    counted = prepared(folder / "counted" / "state")
    nursery.finished(lambda: faulty(counted, None, "kill"), folder / "counted.log")
    operations = json.loads((counted.parent / "operations.json").read_text(encoding="utf-8"))
    counts = {"operations": len(operations), **dict.fromkeys((*faults.HOWS, "ended_by_it"), 0)}
    losses = []
    for way, how in enumerate(faults.HOWS):
        for at in range(1 + way % every, len(operations) + 1, every):
            place = folder / f"{how.replace(' ', '-')}-{at}" / "state"
            wrong, struck = trial(place, at, how, place.parent / "log.txt")
            counts[how] += 1
            counts["ended_by_it"] += struck
            if wrong is not None:
                losses.append(f"{how} at {at} {operations[at - 1]}: {wrong}")
            shutil.rmtree(place.parent)
    return {**counts, "losses": losses}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
