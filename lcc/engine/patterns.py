"""Which weights stay: the highest scores of each row, or of each small group along a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def rows_mask(scores: Tensor, sparsity: float) -> Tensor:
    """True for the weights that stay, the same number in each row; (out, in) → (out, in) bool."""
    num_inputs = scores.shape[1]
    return _top(scores, num_inputs - round(sparsity * num_inputs))


def groups_mask(scores: Tensor, *, keep: int, of: int) -> Tensor:
    """True for the `keep` highest of every `of` neighbours along the inputs (N:M sparsity)."""
    groups = scores.reshape(-1, of)
    return _top(groups, keep).view(scores.shape)


def _top(scores: Tensor, num_kept: int) -> Tensor:
    # By index, not by threshold: equal scores must not keep or drop more than asked.
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, scores.topk(num_kept, dim=1).indices, True)
