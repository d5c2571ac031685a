"""Bound the gradient norm of every layer by itself (per-layer clipping; McMahan et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.distributed.state import local
from lcc.training.optim import ClipResult, joint_norm, norms

if TYPE_CHECKING:
    from torch.nn import Parameter


@card
class PerLayer:
    """Each of m layers at most `max_norm` / √m, so that the joint 2-norm is at most `max_norm`.

    A layer is a module with its own parameters: a weight and its bias are one.
    """

    word: ClassVar[str] = "per_layer"
    revision: ClassVar[int] = 1
    clips: ClassVar[str] = "layers"
    window: ClassVar[int] = 0

    max_norm: Annotated[float, Field(gt=0)] = 1.0

    def apply(self, parameters: Mapping[str, Parameter], past_norms: Sequence[float]) -> ClipResult:
        layers = {name: i for i, name in enumerate(dict.fromkeys(map(_layer, parameters)))}
        threshold = self.max_norm / math.sqrt(len(layers))
        graded = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        if not graded:
            return ClipResult(0.0, threshold, 0.0)
        each = norms(list(graded.values()))
        owner = torch.tensor([layers[_layer(name)] for name in graded], device=each.device)
        squares = torch.zeros(len(layers), dtype=torch.float64, device=each.device)
        by_layer = squares.index_add_(0, owner, each.double().square()).sqrt()
        is_above = by_layer > threshold
        factors = torch.where(is_above, threshold / by_layer, 1.0)[owner]
        for gradient, factor in zip(graded.values(), factors.tolist(), strict=True):
            local(gradient).mul_(factor)
        return ClipResult(joint_norm(each), threshold, int(is_above.sum()) / len(layers))


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]
