"""Sparsity patterns: the highest scores of a row, of a layer, or of each small group of inputs (N:M) stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = "block"


@dataclass(frozen=True)
class Pattern:
    """`unstructured`, N of M neighbours along the inputs (`2:4`), or runs of inputs (`block16`)."""

    word: str
    sparsity: float

    @cached_property
    def groups(self) -> tuple[int, int]:
        """(N, M): N of M neighbours stay; (0, 0) for other patterns."""
        keep, _, of = self.word.partition(":")
        return (int(keep), int(of)) if of else (0, 0)

    @property
    def run(self) -> int:
        """Neighbouring inputs that stay or go together."""
        return int(self.word.removeprefix(BLOCK)) if self.word.startswith(BLOCK) else 1

    @property
    def unit(self) -> int:
        """Neighbouring inputs that may not be torn apart."""
        return self.groups[1] or self.run

    def num_zeros(self, num_inputs: int) -> int:
        """How many weights of a row shall be zero."""
        keep, of = self.groups
        if of:
            return num_inputs // of * (of - keep)
        return round(self.sparsity * (num_inputs // self.run)) * self.run

    def mask(self, scores: Tensor) -> Tensor:
        """True for the weights that stay, the same number in each row; (out, in) → bool."""
        keep, of = self.groups
        if of:
            return groups_mask(scores, keep=keep, of=of)
        runs = self.runs(scores)
        return rows_mask(runs, self.sparsity).repeat_interleave(self.run, dim=1)

    def runs(self, scores: Tensor) -> Tensor:
        """(rows, inputs) scores summed over the inputs that stay or go together."""
        return scores.reshape(len(scores), -1, self.run).sum(dim=-1) if self.run > 1 else scores


def rows_mask(scores: Tensor, sparsity: float) -> Tensor:
    """True for the weights that stay, the same number in each row; (out, in) → (out, in) bool."""
    num = round(sparsity * scores.shape[1])
    return rows_without_lowest(scores, torch.full((len(scores),), num, device=scores.device))


def groups_mask(scores: Tensor, *, keep: int, of: int) -> Tensor:
    """True for the `keep` highest of every `of` neighbours along the inputs (N:M sparsity)."""
    groups = scores.reshape(-1, of)
    return _top(groups, keep).view(scores.shape)


def without_lowest(scores: Tensor, num: int) -> Tensor:
    """True everywhere but at the `num` lowest of non-negative scores, of the whole tensor."""
    if num <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        from lcc.kernels import search

        return search.without_lowest(scores, num)
    return without_lowest_in_torch(scores, num)


def without_lowest_in_torch(scores: Tensor, num: int) -> Tensor:
    """The same for any device and number above zero."""
    flat = scores.flatten()
    threshold = flat.kthvalue(num).values
    mask = scores > threshold
    # Of equal scores the first go, so that exactly as many are dropped as asked.
    equal = (flat == threshold).nonzero()[:, 0]
    num_below = int((flat < threshold).sum())
    mask.view(-1)[equal[num - num_below :]] = True
    return mask


def rows_without_lowest(scores: Tensor, nums: Tensor) -> Tensor:
    """True everywhere but at each row's `nums` (rows,) lowest non-negative scores."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        from lcc.kernels import search

        return search.rows_without_lowest(scores, nums)
    return rows_without_lowest_in_torch(scores, nums)


def rows_without_lowest_in_torch(scores: Tensor, nums: Tensor) -> Tensor:
    """The same for any device."""
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return rank >= nums[:, None]


def _top(scores: Tensor, num_kept: int) -> Tensor:
    # By index, not by threshold: equal scores must not keep or drop more than asked.
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, scores.topk(num_kept, dim=1).indices, True)


# How much of each block goes when not every block can spare the same.
#
# Every rule keeps the share of zeros over all weights exactly as asked.

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
