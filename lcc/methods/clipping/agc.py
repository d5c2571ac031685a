"""Bound the gradient of every unit by the norm of its weights (AGC; Brock et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.distributed.state import local
from lcc.training.optim import ClipResult, gradient_norm, norms, over_shards, precise

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


@card
class AGC:
    """Each unit's gradient norm at most `clipping` times its weight norm (at least `epsilon`).

    A unit is what makes one output: a row of a weight (out, in), or a whole bias or gain. Names
    that match a pattern of `skip` are left alone, as the paper leaves the last layer.
    """

    word: ClassVar[str] = "agc"
    revision: ClassVar[int] = 1
    clips: ClassVar[str] = "units"
    window: ClassVar[int] = 0

    clipping: Annotated[float, Field(gt=0)] = 0.01
    epsilon: Annotated[float, Field(gt=0)] = 1e-3
    skip: tuple[str, ...] = ("*lm_head*", "*classifier*", "*score*")

    def apply(self, parameters: Mapping[str, Parameter], past_norms: Sequence[float]) -> ClipResult:
        norm = gradient_norm(parameters.values())
        chosen = [p for name, p in parameters.items() if not self._is_skipped(name)]
        num_units = sum(p.shape[0] if p.ndim > 1 else 1 for p in chosen)
        graded = [p for p in chosen if p.grad is not None]
        clipped = self._bound_rows([p for p in graded if p.ndim > 1])
        clipped += self._bound_vectors([p for p in graded if p.ndim <= 1])
        return ClipResult(norm, self.clipping, clipped / max(1, num_units))

    def _is_skipped(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.skip)

    def _bound_rows(self, matrices: list[Parameter]) -> int:
        if not matrices:
            return 0
        counts = []
        for matrix in matrices:
            assert _has_whole_rows(matrix), "a shard holds parts of rows"
            gradient, weight = local(_gradient(matrix)), local(matrix.detach())
            rows = [
                torch.linalg.vector_norm(precise(t), dim=tuple(range(1, t.ndim)), keepdim=True)
                for t in (gradient, weight)
            ]
            factors, is_above = self._factors(*rows)
            gradient.mul_(factors)
            counts.append(is_above.sum())
        return int(over_shards(torch.stack(counts), matrices).sum())

    def _bound_vectors(self, vectors: list[Parameter]) -> int:
        if not vectors:
            return 0
        gradients = [_gradient(vector) for vector in vectors]
        lengths, weights = norms(gradients), norms([v.detach() for v in vectors])
        factors, is_above = self._factors(lengths, weights)
        for gradient, factor in zip(gradients, factors.tolist(), strict=True):
            local(gradient).mul_(factor)
        return int(is_above.sum())

    def _factors(self, gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What to multiply by for each unit, and which units that changes."""
        limit = self.clipping * weight.clamp(min=self.epsilon)
        is_above = gradient > limit
        return torch.where(is_above, limit / gradient, 1.0), is_above


def _gradient(parameter: Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _has_whole_rows(matrix: Parameter) -> bool:
    placements = getattr(matrix, "placements", ())
    return all(not p.is_shard() or p.is_shard(0) for p in placements)
