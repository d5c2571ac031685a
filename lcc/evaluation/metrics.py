"""The contract of a metric: per-sample statistics that add up, and a score of their sums.

A corpus score is `score(statistics.sum(0))`; so is every resample of it, which is why a bootstrap
over a thousand resamples is one matrix product (evaluation/bootstrap).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from lcc.core.errors import DataError
from lcc.tasks.template import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Need = Literal["answers", "likelihood", "guesses"]


@dataclass(frozen=True)
class Prediction:
    """What a model made of one row.

    `nats`, `num_tokens`, `num_bytes` and `num_characters` are of the text that it had to predict;
    `counts` say how many hidden tokens and pairs it guessed.
    """

    id: str
    source: dict[str, Any]
    reference: str
    output: str | None = None
    finished: bool = True  # ended by itself, not cut at its limit
    nats: float | None = None
    num_tokens: int | None = None
    num_bytes: int | None = None
    num_characters: int | None = None
    counts: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Metric(Protocol):
    """A card on the shelf `metrics`.

    `needs` says what must be computed first: generated (or predicted) answers, likelihoods, or
    guesses at hidden tokens.
    """

    word: ClassVar[str]
    revision: ClassVar[int]
    unit: ClassVar[str]
    needs: ClassVar[Need]
    higher_is_better: ClassVar[bool]
    label: ClassVar[str]  # as its papers spell it; the word, where a card gives none
    order: ClassVar[int]  # place among the columns of a table; last, where a card gives none

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """(num_answers, num_columns), one row per answer."""
        ...

    def score(self, sums: Floats) -> Floats:
        """(…, num_columns) sums of statistics → (…) scores."""
        ...

    def signature(self, language: str) -> str:
        """How the score was computed, precisely enough to compute it again."""
        ...


# The samples of an evaluation: which rows, and the file of what a model made of each.


def chosen_rows(rows: Sequence[Row], num: int, split: str) -> list[Row]:
    """`num` rows by the hash of their ids: the same for every checkpoint, whatever the order."""
    if not rows:
        raise DataError(f"the {split} split is empty; choose another with eval.split.")
    hashed = sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).hexdigest())
    return hashed[:num]


def read_answers(folder: Path) -> list[Prediction]:
    """The answers that an earlier evaluation left in `samples.jsonl`."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [Prediction(**json.loads(line)) for line in lines]


def require_same_samples(mine: list[Prediction], other: list[Prediction], side: str) -> None:
    """Raise DataError unless both evaluations saw the same rows with the same fields."""
    seen = [[(a.id, a.source, a.reference) for a in answers] for answers in (mine, other)]
    if seen[0] != seen[1]:
        raise DataError(
            f"the {side} was evaluated on other samples; evaluate both with the same "
            "data, split and number of samples."
        )


def write_answers(path: Path, answers: Sequence[Prediction]) -> Path:
    """One JSON line per sample; returns `path`."""
    with path.open("w", encoding="utf-8") as file:
        for one in answers:
            file.write(json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n")
    return path
