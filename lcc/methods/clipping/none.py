"""Leave gradients as they are; their norm is still measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.training.optim import ClipResult, gradient_norm

if TYPE_CHECKING:
    from torch.nn import Parameter


@card
class NONE:
    """No clipping."""

    word: ClassVar[str] = "none"
    revision: ClassVar[int] = 1
    clips: ClassVar[str] = "steps"
    window: ClassVar[int] = 0

    def apply(self, parameters: Mapping[str, Parameter], past_norms: Sequence[float]) -> ClipResult:
        return ClipResult(gradient_norm(parameters.values()), None, 0.0)
