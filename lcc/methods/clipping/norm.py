"""Scale all gradients so that their joint norm is at most a threshold (Pascanu et al., 2013)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.training.optim import ClipResult, bound_norm, gradient_norm

if TYPE_CHECKING:
    from torch.nn import Parameter


@card
class Norm:
    """Joint 2-norm at most `max_norm`."""

    word: ClassVar[str] = "norm"
    revision: ClassVar[int] = 2
    clips: ClassVar[str] = "steps"
    window: ClassVar[int] = 0

    max_norm: Annotated[float, Field(gt=0)] = 1.0

    def apply(self, parameters: Mapping[str, Parameter], past_norms: Sequence[float]) -> ClipResult:
        norm = gradient_norm(parameters.values())
        return bound_norm(parameters, norm, threshold=self.max_norm)
