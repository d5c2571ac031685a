"""Scale all gradients so that their joint norm is at most a threshold (Pascanu et al., 2013)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.core.decode import card
from lcc.core.lazy import torch
from lcc.engine.optimization import ClipResult

if TYPE_CHECKING:
    from torch.nn import Parameter


@card
class Norm:
    """Joint 2-norm at most `max_norm`."""

    revision: ClassVar[int] = 1
    max_norm: Annotated[float, Field(gt=0)] = 1.0

    @property
    def threshold(self) -> float:
        return self.max_norm

    def apply(self, parameters: Sequence[Parameter]) -> ClipResult:
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.max_norm))
        return ClipResult(norm, norm > self.max_norm)
