"""Causal language modelling: predict the next token (Radford et al., 2018), documents packed into blocks."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.tasks.encode import IGNORED, padded_rows
from lcc.training.batches import Batch, LogitsOf
from lcc.training.loss import logits_function
from lcc.training.pretraining import DrawnExample, Material, Piece

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.core.types import Head


@card
class Causal:
    """Blocks are cut from the stream of all documents and overlap by one token.

    So every token is predicted exactly once an epoch, but for each document's first. Positions
    start again with every document, and where the model can be kept from it nothing is seen of
    the document before.
    """

    word: ClassVar[str] = "causal"
    revision: ClassVar[int] = 1
    head: ClassVar[Head] = "causal"
    by_sentence: ClassVar[bool] = False
    marks_ends: ClassVar[bool] = True

    def pieces(self, material: Material) -> list[Piece]:
        step, end = material.length - 1, material.corpus.num_tokens
        return [(start, min(start + material.length, end)) for start in range(0, end - 1, step)]

    def draw(
        self, material: Material, pieces: Sequence[Piece], index: int, dice: random.Random
    ) -> DrawnExample:
        start, stop = pieces[index]
        ids = material.corpus.tokens(start, stop)
        positions, labels = list(range(len(ids))), [*ids[1:], IGNORED]
        for first in _document_starts(material, start, stop):
            positions[first:] = range(len(ids) - first)
            labels[first - 1] = IGNORED  # nothing tells which document comes next
        return DrawnExample(ids, labels, positions=positions)

    def collate(self, drawn: Sequence[DrawnExample], material: Material, *, pad: int, device: str) -> Batch:
        # Without an attention mask transformers reads the documents' borders off the positions;
        # padding stands behind everything that a causal model may look at.
        inputs = {"input_ids": padded_rows([one.input_ids for one in drawn], pad, device=device)}
        if material.isolated:
            rows = [one.positions for one in drawn]
            inputs["position_ids"] = padded_rows(rows, 0, device=device)
        labels = padded_rows([one.labels for one in drawn], IGNORED, device=device)
        positions = labels != IGNORED
        return Batch(inputs, positions, labels[positions])

    def student(self, model: Module) -> LogitsOf:
        return logits_function(model, "causal")

    def loss(self, model: Module) -> Callable[[Batch], Tensor] | None:
        return None


def _document_starts(material: Material, start: int, stop: int) -> list[int]:
    """Where in the block a new document begins, its first token apart."""
    ends = material.corpus.ends
    first = bisect.bisect_right(ends, start)
    last = bisect.bisect_left(ends, stop)
    return [int(end) - start for end in ends[first:last]]
