"""What a metric is: per-sample statistics that add up, and a score of their sums.

A corpus score is `score(statistics.sum(0))`; so is every resample of it, which is why a bootstrap
over a thousand resamples is one matrix product (parts/bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Need = Literal["answers", "likelihood", "guesses"]


@dataclass(frozen=True)
class Answer:
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

    revision: ClassVar[int]
    unit: ClassVar[str]
    needs: ClassVar[Need]
    higher_is_better: ClassVar[bool]

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """(num_answers, num_columns), one row per answer."""
        ...

    def score(self, sums: Floats) -> Floats:
        """(…, num_columns) sums of statistics → (…) scores."""
        ...

    def signature(self, language: str) -> str:
        """How the score was computed, precisely enough to compute it again."""
        ...
