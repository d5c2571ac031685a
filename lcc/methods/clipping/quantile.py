"""Scale by a running quantile of the norms seen so far (AutoClip; Seetharaman et al., 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.training.optim import ClipResult, bound_norm, gradient_norm

if TYPE_CHECKING:
    from torch.nn import Parameter


@card
class Quantile:
    """Joint 2-norm at most the `quantile` of the last `window` steps' norms, this one's included.

    Norms that are not finite are no part of it; neither is what clipping made of the others.
    """

    word: ClassVar[str] = "quantile"
    revision: ClassVar[int] = 1
    clips: ClassVar[str] = "steps"

    quantile: Annotated[float, Field(gt=0, le=1)] = 0.1
    window: Annotated[int, Field(ge=2)] = 1000

    def apply(self, parameters: Mapping[str, Parameter], past_norms: Sequence[float]) -> ClipResult:
        norm = gradient_norm(parameters.values())
        if not math.isfinite(norm):
            return ClipResult(norm, None, 0.0)
        recent = [*past_norms, norm][-self.window :]
        threshold = torch.quantile(torch.tensor(recent, dtype=torch.float64), self.quantile)
        return bound_norm(parameters, norm, threshold=float(threshold))
