"""How much of each block goes when not every block can spare the same.

Every rule keeps the share of zeros over all weights exactly as asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MOST = 0.99  # of a block: an empty layer passes nothing on

Shares = dict[str, float]
"""Block → share of its weights that go."""


def uniform(sizes: Mapping[str, int], sparsity: float) -> Shares:
    """The same everywhere; `sizes` are weights per block, in forward order."""
    return dict.fromkeys(sizes, sparsity)


def by_outliers(
    outliers: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, *, bound: float
) -> Shares:
    """Blocks with more outliers keep more, within `bound` of the mean (OWL; arXiv 2310.05175)."""
    least, most = min(outliers.values()), max(outliers.values())
    spread = (most - least) or 1.0
    moved = {name: -2 * bound * (outliers[name] - least) / spread for name in sizes}
    return centred(moved, sizes, sparsity)


def outlier_share(scores: Sequence[Tensor], *, factor: float) -> float:
    """The share of a block's scores above `factor` times their mean, all its layers together."""
    num = sum(score.numel() for score in scores)
    mean = sum(float(score.double().sum()) for score in scores) / num
    return sum(int((score > factor * mean).sum()) for score in scores) / num


def by_depth(
    stacks: Sequence[Sequence[str]], sizes: Mapping[str, int], sparsity: float, *, beta: float
) -> Shares:
    """Each stack's blocks go `beta` more than the one before (ATP; arXiv 2502.14770).

    Errors of early blocks grow on their way through the later ones. An encoder and a decoder are
    stacks of their own, and each keeps the mean.
    """
    shares: Shares = {}
    for stack in stacks:
        own = {name: sizes[name] for name in stack}
        shares |= centred({name: beta * i for i, name in enumerate(stack)}, own, sparsity)
    return {name: shares[name] for name in sizes}


def centred(values: Mapping[str, float], sizes: Mapping[str, int], mean: float) -> Shares:
    """`values` moved by one number so that their mean, weighted by size, is `mean`.

    Those that would leave [0, MOST] stay at its ends, and the others make up for it.
    """
    low, high = -1.0 - max(values.values()), 1.0 - min(values.values())
    for _ in range(60):  # Halved to the last bit of a float.
        middle = (low + high) / 2
        shares = {name: min(max(value + middle, 0.0), MOST) for name, value in values.items()}
        total = sum(shares[name] * size for name, size in sizes.items())
        low, high = (middle, high) if total < mean * sum(sizes.values()) else (low, middle)
    return shares
