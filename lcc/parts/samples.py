"""The samples of an evaluation: which rows, and the file of what a model made of each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from lcc.core.errors import DataError
from lcc.parts.metrics import Answer
from lcc.parts.task import Row


def chosen_rows(rows: Sequence[Row], num: int, split: str) -> list[Row]:
    """`num` rows by the hash of their ids: the same for every checkpoint, whatever the order."""
    if not rows:
        raise DataError(f"the {split} split is empty; choose another with eval.split.")
    hashed = sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).hexdigest())
    return hashed[:num]


def read_answers(folder: Path) -> list[Answer]:
    """The answers that an earlier evaluation left in `samples.jsonl`."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [Answer(**json.loads(line)) for line in lines]


def require_same_samples(mine: list[Answer], other: list[Answer], side: str) -> None:
    """Raise DataError unless both evaluations saw the same rows with the same fields."""
    seen = [[(a.id, a.source, a.reference) for a in answers] for answers in (mine, other)]
    if seen[0] != seen[1]:
        raise DataError(f"the {side} was evaluated on other samples; evaluate both with the same "
                        "data, split and number of samples.")  # fmt: skip


def write_answers(path: Path, answers: Sequence[Answer]) -> Path:
    """One JSON line per sample; returns `path`."""
    with path.open("w", encoding="utf-8") as file:
        for one in answers:
            file.write(json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n")
    return path
