"""What is cut as one: an axis of several layers whose entries stand for the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn import Linear, Module, Parameter

Axis = Literal["in", "out"]


@dataclass(frozen=True)
class Member:
    """One axis of one layer: `size` neighbouring entries stand for each thing that may go.

    The axis may be `copies` such runs, one behind the other (GPT-2's q, k and v in one layer).
    A bare parameter is a member of the module it hangs on; its last dimension is cut.
    """

    name: str
    layer: Module
    axis: Axis
    size: int = 1
    copies: int = 1
    parameter: str = ""  # of a bare one

    @property
    def length(self) -> int:
        return next(int(p.shape[dim]) for p, dim in self.parameters())

    def parameters(self) -> list[tuple[Parameter, int]]:
        """Each parameter of the layer that has this axis, and which of its dimensions it is."""
        if self.parameter:
            return [(getattr(self.layer, self.parameter), -1)]
        weight: Any = self.layer.weight
        if isinstance(self.layer, torch.nn.Embedding):
            return [(weight, 1)]
        if self.axis == "in":
            return [(weight, 1)]
        bias: Any = getattr(self.layer, "bias", None)
        return [(weight, 0)] if bias is None else [(weight, 0), (bias, 0)]

    def entries(self, kept: Sequence[int]) -> list[int]:
        """Where on the axis the things with these numbers are."""
        run = self.length // self.copies
        return [
            copy * run + thing * self.size + i
            for copy in range(self.copies)
            for thing in kept
            for i in range(self.size)
        ]

    def totals(self, score: Tensor, dim: int) -> Tensor:
        """The sum of the scores of a parameter for each thing: (num,)."""
        others = [d for d in range(score.dim()) if d != dim % score.dim()]
        along = score.sum(dim=others) if others else score
        return along.view(self.copies, -1, self.size).sum(dim=(0, 2))


@dataclass(frozen=True)
class Unit:
    """`num` channels or heads of which the same stay in every member.

    Of each of `runs` equal runs of neighbours the same number stays: the query heads of every
    key-value head. `field` says where the config states the number.
    """

    name: str
    num: int
    members: tuple[Member, ...]
    field: str = ""
    runs: int = 1

    @property
    def consumers(self) -> dict[str, Linear]:
        """The linear layers that read what is cut, by name: these are ranked by and repaired."""
        found: dict[str, Any] = {m.name: m.layer for m in self.members if m.axis == "in"}
        return {n: layer for n, layer in found.items() if isinstance(layer, torch.nn.Linear)}

    def consumer(self, name: str) -> Member:
        return next(m for m in self.members if m.axis == "in" and m.name == name)

    def columns(self, name: str, kept: Sequence[int]) -> list[int]:
        """Which inputs of a consumer belong to these channels or heads."""
        return self.consumer(name).entries(kept)

    def best(self, importance: Tensor, num_kept: int) -> list[int]:
        """The most important ones, the same number of every run, in their old order."""
        assert num_kept % self.runs == 0, (num_kept, self.runs)
        each, length = num_kept // self.runs, self.num // self.runs
        ranked = importance.view(self.runs, length).topk(each).indices
        starts = torch.arange(self.runs, device=ranked.device).unsqueeze(1) * length
        return sorted((ranked + starts).flatten().tolist())

    def keep(self, kept: Sequence[int]) -> None:
        """Cut everything else away, in place; parameters that are one stay one."""
        # All entries first: a tied matrix shrinks for the second member as soon as for the first.
        plans = [(member, member.entries(kept), member.parameters()) for member in self.members]
        done: set[tuple[int, int]] = set()
        for _, entries, parameters in plans:
            for parameter, dim in parameters:
                if (id(parameter), dim) not in done:
                    _keep(parameter, dim, entries)
                    done.add((id(parameter), dim))
        for member in self.members:
            _restate(member.layer)


def _keep(parameter: Parameter, dim: int, entries: list[int]) -> None:
    index = torch.tensor(entries, device=parameter.device)
    parameter.data = parameter.data.index_select(dim % parameter.dim(), index)
    parameter.grad = None


def _restate(layer: Any) -> None:
    """Make the layer say the shape it has."""
    if isinstance(layer, torch.nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, torch.nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    elif isinstance(layer, torch.nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
