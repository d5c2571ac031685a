"""An exponential moving average (EMA) of the weights: evaluated and published, while the raw ones train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.distributed.state import placed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

AVERAGE_BYTES = 4  # of a parameter, in memory and in every saved state


@card
class EMA:
    """An exponential moving average of the weights after every step (Polyak and Juditsky, 1992).

    For noisy runs at a level learning rate. The decay of step t is at most (1 + t) / (10 + t), so
    that a short run soon forgets the weights it began with.
    """

    word: ClassVar[str] = "averaging"
    revision: ClassVar[int] = 1
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))


class Average:
    """The running average of `parameters` by name; without an `ema` it holds and does nothing."""

    def __init__(self, ema: EMA | None, parameters: Mapping[str, Parameter]) -> None:
        self.ema, self.parameters = ema, parameters
        self.tensors: dict[str, Tensor] = {}

    def start(self) -> None:
        """Begin with the parameters as they are, unless an average was restored."""
        if self.ema is not None and not self.tensors:
            self.tensors = {n: p.detach().clone() for n, p in self.parameters.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The average by name."""
        return self.tensors

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from a saved average, sharded as the parameters are now."""
        for name, tensor in saved.items():
            like = self.parameters[name].detach()
            self.tensors[name] = like.clone().copy_(placed(tensor, like))

    def update(self, step: int) -> None:
        """Take the parameters after optimizer step `step` (from 1) into the average."""
        if self.ema is None:
            return
        weight = 1 - self.ema.decay_at(step)
        with torch.no_grad():
            for name, average in self.tensors.items():
                average.lerp_(self.parameters[name].detach(), weight)

    def publish(self) -> None:
        """Put the average in place of the parameters."""
        with torch.no_grad():
            for name, average in self.tensors.items():
                self.parameters[name].copy_(average)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the average inside, and with its own parameters again after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Values and not storages: FSDP2 and optimizers hold on to the parameters' own.
        with torch.no_grad():
            for name, average in self.tensors.items():
                raw = self.parameters[name].detach().clone()
                self.parameters[name].copy_(average)
                average.copy_(raw)
