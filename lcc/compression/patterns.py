"""Which weights stay: the highest scores of a row, of a layer, or of each small group of inputs."""

from __future__ import annotations

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
        """How many weights of a row are asked to be zero."""
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
        from lcc.compression import selection_kernels

        return selection_kernels.without_lowest(scores, num)
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
        from lcc.compression import selection_kernels

        return selection_kernels.rows_without_lowest(scores, nums)
    return rows_without_lowest_in_torch(scores, nums)


def rows_without_lowest_in_torch(scores: Tensor, nums: Tensor) -> Tensor:
    """The same for any device."""
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return rank >= nums[:, None]


def _top(scores: Tensor, num_kept: int) -> Tensor:
    # By index, not by threshold: equal scores must not keep or drop more than asked.
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, scores.topk(num_kept, dim=1).indices, True)
