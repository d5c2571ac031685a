"""Cut every gradient element off at a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.core.decode import card
from lcc.core.lazy import torch
from lcc.engine.optimization import ClipResult, gradient_norm

if TYPE_CHECKING:
    from torch.nn import Parameter


@card
class Value:
    """Each element within [-max_value, max_value]."""

    revision: ClassVar[int] = 1
    max_value: Annotated[float, Field(gt=0)] = 0.5

    @property
    def threshold(self) -> float:
        return self.max_value

    def apply(self, parameters: Sequence[Parameter]) -> ClipResult:
        norm = gradient_norm(parameters)
        largest = [p.grad.abs().max() for p in parameters if p.grad is not None]
        clipped = bool(largest) and bool(torch.stack(largest).max() > self.max_value)
        torch.nn.utils.clip_grad_value_(parameters, self.max_value)
        return ClipResult(norm, clipped)
