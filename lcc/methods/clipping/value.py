"""Cut every gradient element off at a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.distributed.state import local
from lcc.training.optim import ClipResult, gradient_norm, gradients_of, over_shards

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


@card
class Value:
    """Each element within [-max_value, max_value]; unlike a scale, that turns the gradient."""

    word: ClassVar[str] = "value"
    revision: ClassVar[int] = 1
    clips: ClassVar[str] = "elements"
    window: ClassVar[int] = 0

    max_value: Annotated[float, Field(gt=0)] = 0.5

    def apply(self, parameters: Mapping[str, Parameter], past_norms: Sequence[float]) -> ClipResult:
        norm = gradient_norm(parameters.values())
        gradients = gradients_of(parameters.values())
        if not gradients:
            return ClipResult(norm, self.max_value, 0.0)
        counts = torch.stack([self._cut(local(gradient)) for gradient in gradients])
        num_elements = sum(parameter.numel() for parameter in parameters.values())
        num_clipped = int(over_shards(counts, gradients).sum())
        return ClipResult(norm, self.max_value, num_clipped / num_elements)

    def _cut(self, gradient: Tensor) -> Tensor:
        """Cut `gradient` off in place; how many elements that changed."""
        # Two comparisons: the absolute values of a large embedding would be a copy of it.
        above, below = (gradient > self.max_value).sum(), (gradient < -self.max_value).sum()
        gradient.clamp_(-self.max_value, self.max_value)
        return above + below
