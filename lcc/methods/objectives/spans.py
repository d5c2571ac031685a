"""Span corruption: give back the spans taken out of a text (T5; Raffel et al., 2020)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import DataError
from lcc.training.batches import Batch, LogitsOf, collate
from lcc.training.loss import logits_function
from lcc.training.pretraining import DrawnExample, Material, Piece, document_pieces

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.core.types import Head

SHORTEST = 2  # a token to keep and one to take out


@card
class Spans:
    """`share` of a document's tokens go, in spans of `mean_length` on average.

    In the text a sentinel stands for each span; the target is every sentinel with what it stands
    for, a last sentinel, and the end token.
    """

    word: ClassVar[str] = "spans"
    revision: ClassVar[int] = 1
    head: ClassVar[Head] = "seq2seq"
    by_sentence: ClassVar[bool] = False
    marks_ends: ClassVar[bool] = False

    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mean_length: Annotated[float, Field(ge=1)] = 3.0

    def pieces(self, material: Material) -> list[Piece]:
        if len(material.sentinels) < 2:
            raise DataError(
                "pretrain: this tokenizer has no <extra_id_0> and on to stand for what "
                "is taken out; train one with tokenizer: {kind: unigram}."
            )
        room = material.length - material.frame.num_single
        return document_pieces(material, room, least=SHORTEST)

    def draw(
        self, material: Material, pieces: Sequence[Piece], index: int, dice: random.Random
    ) -> DrawnExample:
        ids = material.corpus.tokens(*pieces[index])
        num_noise = min(max(round(self.share * len(ids)), 1), len(ids) - 1)
        num_kept = len(ids) - num_noise
        most = min(num_noise, num_kept + 1, len(material.sentinels) - 1)
        num_spans = min(max(round(num_noise / self.mean_length), 1), most)
        # A text may begin and end with a span, but two spans never touch.
        kept = _composition(num_kept + 2, num_spans + 1, dice)
        taken = _composition(num_noise, num_spans, dice)
        shown, target, place = list[int](), list[int](), 0
        for i, num_taken in enumerate(taken):
            span = place + kept[i] - (i == 0)
            shown += [*ids[place:span], material.sentinels[i]]
            target += [material.sentinels[i], *ids[span : span + num_taken]]
            place = span + num_taken
        shown += ids[place:]
        target.append(material.sentinels[num_spans])
        if material.eos is not None:
            target.append(material.eos)
        return DrawnExample(material.frame.single(shown), target)

    def collate(self, drawn: Sequence[DrawnExample], material: Material, *, pad: int, device: str) -> Batch:
        return collate(drawn, head="seq2seq", pad=pad, device=device)

    def student(self, model: Module) -> LogitsOf:
        return logits_function(model, "seq2seq")

    def loss(self, model: Module) -> Callable[[Batch], Tensor] | None:
        return None


def _composition(total: int, num_parts: int, dice: random.Random) -> list[int]:
    """`total` as a sum of positive parts, all such sums alike."""
    cuts = sorted(dice.sample(range(1, total), num_parts - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
