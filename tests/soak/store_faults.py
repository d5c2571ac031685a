"""Fail, kill and power-cut every file operation from claiming a step to publishing its result.

python tests/soak/store_faults.py FOLDER [EVERY]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import faults
import nursery

from lcc.core import disk
from lcc.core.errors import LccError
from lcc.store.artifact import Artifact, Work
from lcc.store.store import Store

PARENT, KEY = "ab" * 32, "cd" * 32
FILES = {"model/tokenizer", "model/weights", "report.json"}
STATE = "state/step-000000001/state.json"
WEIGHTS = "new weights" * 400
ENDS = {"ENOSPC": 6, "EIO": 4, "kill": -9, "power cut": -9}


def publish(root: Path, key: str, *, reuse: tuple[Path, ...] = ()) -> int:
    """Claim, compute and publish as the runner does; an error's exit code."""
    store = Store(root, warn=print)
    try:
        with disk.explain_errors(root, 10_000, "the step"), store.claim(key) as claimed:
            if isinstance(claimed, Artifact):
                return 0
            if key == KEY and not (claimed.path / STATE).is_file():
                print("the state to resume from is gone")
                return 97
            compute(claimed)
            store.publish(claimed, report={"name": key[:4], "kind": "finetune"}, reuse=reuse)
    except LccError as error:
        print(f"said: {error}")
        return error.exit_code
    return 0


def compute(work: Work) -> None:
    """Two files of the result, one of them its parent's."""
    (work.path / "model").mkdir(exist_ok=True)
    (work.path / "model" / "tokenizer").write_text("the same everywhere", encoding="utf-8")
    (work.path / "model" / "weights").write_text(WEIGHTS, encoding="utf-8")


def prepared(root: Path) -> Path:
    """A published parent, and the state that an owner who was killed has left."""
    assert publish(root, PARENT) == 0
    with Store(root).claim(KEY) as work:
        assert isinstance(work, Work)
        (work.path / STATE).parent.mkdir(parents=True)
        (work.path / STATE).write_text("{}", encoding="utf-8")
    return root


def faulty(root: Path, at: int | None, how: str) -> int:
    layer = faults.Layer(root, at=at, how=how)
    faults.install(layer)
    code = publish(root, KEY, reuse=(root / "store" / PARENT,))
    if at is None:
        (root.parent / "operations.json").write_text(json.dumps(layer.log), encoding="utf-8")
    return code


def is_right(artifact: Artifact | None) -> bool:
    """Whether an artifact is there and what was meant."""
    if artifact is None or set(artifact.manifest["files"]) != FILES:
        return False
    return (artifact.path / "model" / "weights").read_text() == WEIGHTS


def trial(root: Path, at: int, how: str, log: Path) -> tuple[str | None, bool]:
    """What went wrong when operation `at` fails in the way of `how`, and whether that was told."""
    prepared(root)
    child = nursery.fork(lambda: faulty(root, at, how), log)
    code = child.ended()
    return fault(root, child, code, how, log), code != 0


def fault(root: Path, child: nursery.Child, code: int, how: str, log: Path) -> str | None:
    """What is wrong with what the fault has left, or None."""
    told: list[str] = []
    store = Store(root, warn=told.append)
    found = store.find(KEY)
    if found is not None and not is_right(found):
        return "a half-finished result is visible"
    if code == 0 and found is None:
        return "said that it had published and had not"
    if code not in (ENDS[how], 0):
        return f"ended with {code}: {child.told()}"
    if not is_right(store.find(PARENT)):
        return "its parent was harmed"
    nursery.finished(lambda: publish(root, KEY, reuse=(root / "store" / PARENT,)), log)
    if not is_right(store.find(KEY)) or not is_right(store.find(PARENT)):
        return "the run after it did not go well"
    if told:
        return f"damage was told of: {told}"
    return None


def main(folder: Path, every: int = 1) -> dict[str, Any]:
    """Every operation (or each `every`-th) in every way; counts and what was lost."""
    counted = prepared(folder / "counted" / "runs")
    nursery.finished(lambda: faulty(counted, None, "kill"), folder / "counted.log")
    operations = json.loads((counted.parent / "operations.json").read_text(encoding="utf-8"))
    counts = {"operations": len(operations), **dict.fromkeys((*faults.HOWS, "ended_by_it"), 0)}
    losses = []
    for way, how in enumerate(faults.HOWS):
        for at in range(1 + way % every, len(operations) + 1, every):
            root = folder / f"{how.replace(' ', '-')}-{at}" / "runs"
            wrong, struck = trial(root, at, how, root.parent / "log.txt")
            counts[how] += 1
            counts["ended_by_it"] += struck
            if wrong is not None:
                losses.append(f"{how} at {at} {operations[at - 1]}: {wrong}")
            shutil.rmtree(root.parent)
    return {**counts, "losses": losses}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
