"""What a model says with other weights in one block: the blocks before it hand on what they gave.

Only the blocks from the changed one on are run again, through the model's own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lcc.compression.skipping import Answers, divergence, said
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module

    from lcc.engine.walking import Batch


class Probing:
    """Trials against the model as it is; every block's output is kept for every batch."""

    def __init__(self, model: Any, stops: Mapping[str, Module], batches: Sequence[Batch]) -> None:
        self.model, self.stops, self.batches = model, stops, batches
        self.order = {name: position for position, name in enumerate(stops)}
        self._kept: list[dict[str, Any]] = [{} for _ in batches]
        self._from = -1  # the first block that runs; before it all stand still
        self._batch = 0
        self._whole = [self._record(i) for i in range(len(batches))]

    def divergence(self, block: str, weights: Mapping[Linear, Tensor]) -> float:
        """Mean KL to the unchanged model (relative change of states without logits)."""
        total, num = 0.0, 0
        with _changed(weights):
            for index, whole in enumerate(self._whole):
                answers = self._answers(index, start=self.order[block])
                total += divergence(whole, answers)
                num += len(whole[0])
        return total / num

    def _record(self, index: int) -> Answers:
        kept = self._kept[index]

        def keep(name: str, output: Any) -> Any:
            kept[name] = output
            return output

        with self._blocks(lambda name, forward, given: keep(name, forward(*given[0], **given[1]))):
            return self._said(self.batches[index])

    def _answers(self, index: int, *, start: int) -> Answers:
        kept = self._kept[index]

        def still(name: str, forward: Any, given: Any) -> Any:
            if self.order[name] < start:
                return kept[name]
            return forward(*given[0], **given[1])

        with self._blocks(still):
            return self._said(self.batches[index])

    def _said(self, batch: Batch) -> Answers:
        with torch.no_grad():
            return said(self.model, batch)

    @contextmanager
    def _blocks(self, instead: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for name, block in self.stops.items():
                stack.enter_context(_replaced(block, name, instead))
            yield


@contextmanager
def _replaced(block: Any, name: str, instead: Any) -> Iterator[None]:
    forward = block.forward
    block.forward = lambda *args, **kwargs: instead(name, forward, (args, kwargs))
    try:
        yield
    finally:
        del block.forward


@contextmanager
def _changed(weights: Mapping[Linear, Tensor]) -> Iterator[None]:
    """While open, these layers have other weights."""
    before = {layer: layer.weight.data for layer in weights}
    try:
        for layer, weight in weights.items():
            layer.weight.data = weight.to(layer.weight.dtype)
        yield
    finally:
        for layer, weight in before.items():
            layer.weight.data = weight
