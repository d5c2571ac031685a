"""Drop what the rest can make up for, and let it (SparseGPT; Frantar and Alistarh, 2023).

arXiv 2301.00774: column after column goes or stays by w² / [H⁻¹]_kk, and the columns still to come
take over what was lost. The arithmetic is `compression.columns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lcc.compression.obs_solver import Order, Scope, factorize, quotas, solve_columns
from lcc.compression.sparsity import Pattern
from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.methods.criteria import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class Sparsegpt:
    """`scope`: the whole `layer` loses the asked share, or every `row` by itself.

    `order`: of the inputs by energy. Of N:M groups the largest come first (`falling`); elsewhere
    the small ones, which lose most of their weights, so that the others make up for it (`rising`).
    """

    word: ClassVar[str] = "sparsegpt"
    revision: ClassVar[int] = 2
    needs: ClassVar[Needs | None] = "gram"

    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    order: Literal["auto", "layout", "falling", "rising"] = "auto"
    scope: Scope = "row"
    block_size: Annotated[int, Field(ge=32, multiple_of=32)] = 64

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        """What each weight costs to lose, given that all others may make up for it."""
        assert stats is not None and stats.gram is not None, "sparsegpt reads Grams"
        factor = factorize(stats.gram, damping=self.damping)
        eye = torch.eye(len(stats.gram), device=weight.device)
        # U = (D F)ᵀ, with H = U Uᵀ; [H⁻¹]_kk is the squared norm of column k of U⁻¹.
        inverse = (
            torch.linalg.solve_triangular(factor.feedback, eye, upper=False, unitriangular=True).T
            / factor.spread[:, None]
        )
        cost: Tensor = weight.abs() / inverse.square().sum(dim=0).sqrt().to(weight.dtype)
        return cost

    def prune(
        self, weight: Tensor, stats: LayerStats, patterns: Sequence[Pattern], sizes: Sequence[int]
    ) -> Tensor:
        assert stats.gram is not None, "sparsegpt reads Grams"
        groups = patterns[0].groups
        order: Order = ("falling" if groups[1] else "rising") if self.order == "auto" else self.order
        unit = patterns[0].unit
        factor = factorize(stats.gram, damping=self.damping, order=order, unit=unit)
        choose = None
        if not groups[1]:
            choose = quotas(
                weight,
                factor.costs,
                factor.order,
                patterns=patterns,
                sizes=sizes,
                scope=self.scope,
                block_size=self.block_size,
            ).choose
        return solve_columns(weight, factor, choose=choose, pattern=groups, block_size=self.block_size).to(
            weight.dtype
        )
