"""Leave gradients as they are; their norm is still measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.engine.optimization import ClipResult, gradient_norm

if TYPE_CHECKING:
    from torch.nn import Parameter


@card
class NONE:
    """No clipping."""

    revision: ClassVar[int] = 1

    @property
    def threshold(self) -> None:
        return None

    def apply(self, parameters: Sequence[Parameter]) -> ClipResult:
        return ClipResult(gradient_norm(parameters), clipped=False)
