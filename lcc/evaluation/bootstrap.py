"""Bootstrap intervals and verdicts: the paired bootstrap over samples (Koehn, 2004)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Word = Literal["gained", "kept", "lost", "unclear"]
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class ConfidenceInterval:
    """A value with the bounds of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def draws(num_samples: int, num_resamples: int, seed: int) -> Floats:
    """(num_resamples, num_samples): how often each sample stands in each resample."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_samples, 1 / num_samples)
    return generator.multinomial(num_samples, shares, size=num_resamples).astype(np.float64)


def interval(statistics: Floats, score: Callable[[Floats], Floats], weights: Floats) -> ConfidenceInterval:
    """The corpus score and its interval; `statistics` is (samples, columns)."""
    value = float(score(statistics.sum(axis=0)))
    return _bounds(value, score(weights @ statistics))


def paired(
    mine: Floats, other: Floats, score: Callable[[Floats], Floats], weights: Floats
) -> ConfidenceInterval:
    """Mine minus the other's, each resample drawn from both alike."""
    value = float(score(mine.sum(axis=0)) - score(other.sum(axis=0)))
    return _bounds(value, score(weights @ mine) - score(weights @ other))


def verdict(
    delta: ConfidenceInterval, reference: float, *, keep_ratio: float, higher_is_better: bool = True
) -> Word:
    """One word for a difference to a reference score.

    gained: the whole interval lies above zero. kept: it lies above the tolerated loss,
    (1 - keep_ratio) of the reference. lost: it lies below that. unclear: it holds it.
    For a metric where less is better, all signs are turned. Of a reference of zero nothing can be
    kept or lost.
    """
    low, high = (delta.low, delta.high) if higher_is_better else (-delta.high, -delta.low)
    tolerated = -(1 - keep_ratio) * abs(reference)
    if low > 0:
        return "gained"
    if reference == 0:
        return "unclear"
    if low >= tolerated:
        return "kept"
    return "lost" if high < tolerated else "unclear"


def rule(keep_ratio: float, num_resamples: int) -> str:
    """The rule behind `verdict`, in a sentence for the report."""
    return (
        f"Paired bootstrap over samples, {num_resamples} resamples, 95 % interval of the "
        f"difference. gained: all of it above 0; kept: all of it above a loss of "
        f"{100 * (1 - keep_ratio):.3g} % of the reference score; lost: all of it below that; "
        "unclear: neither."
    )


def _bounds(value: float, resampled: Floats) -> ConfidenceInterval:
    low, high = np.quantile(resampled, QUANTILES)
    return ConfidenceInterval(value, float(low), float(high))
