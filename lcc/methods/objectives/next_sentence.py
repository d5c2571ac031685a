"""Next-sentence prediction beside masked tokens: whether the second text follows the first (BERT)."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.methods.objectives.masked import Masking, masked
from lcc.tasks.encode import IGNORED, padded_rows
from lcc.training.batches import Batch, LogitsOf
from lcc.training.loss import PairBatch, masked_logits, pair_loss
from lcc.training.pretraining import STARTS_SENTENCE, DrawnExample, Material, Piece, require_mask

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.core.types import Head

NUM_TRIES = 1000
Text = tuple[list[int], list[int]]  # tokens and their flags


@card
class NextSentence:
    """Devlin et al. (2019): sentences that follow one another in a document, cut in two.

    Half of the second parts are replaced by sentences of another document. A document of one
    sentence makes no pair. Where the cut falls, what replaces and what is hidden are drawn anew in
    every epoch.
    """

    word: ClassVar[str] = "next_sentence"
    revision: ClassVar[int] = 1
    head: ClassVar[Head] = "paired"
    by_sentence: ClassVar[bool] = True
    marks_ends: ClassVar[bool] = False

    masking: Masking = field(default_factory=Masking)

    def pieces(self, material: Material) -> list[Piece]:
        require_mask(material)
        pieces, start = list[Piece](), 0
        for end in material.corpus.ends.tolist():
            pieces += _chunks(material, start, end)
            start = end
        if pieces and _document(material, pieces[0]) == _document(material, pieces[-1]):
            raise DataError(
                "pretrain: next_sentence needs pairs from two documents at least; the split has one."
            )
        return pieces

    def draw(
        self, material: Material, pieces: Sequence[Piece], index: int, dice: random.Random
    ) -> DrawnExample:
        ids, flags = _text(material, pieces[index])
        cut = dice.choice(_sentence_starts(flags)[1:])
        first, second = (ids[:cut], flags[:cut]), (ids[cut:], flags[cut:])
        is_random = dice.random() < 0.5
        if is_random:
            second = _stranger(material, pieces, index, dice)
            first, second = _fitted(first, second, _room(material), dice)
        return self._masked(material, first, second, dice, relation=int(is_random))

    def _masked(
        self, material: Material, first: Text, second: Text, dice: random.Random, *, relation: int
    ) -> DrawnExample:
        assert material.mask is not None
        frame, num = material.frame, len(first[0])
        drawn = masked(
            first[0] + second[0],
            first[1] + second[1],
            self.masking,
            mask=material.mask,
            ordinary=material.ordinary,
            dice=dice,
        )
        ids, kinds = frame.pair(drawn.ids[:num], drawn.ids[num:])
        before, between, after = (
            [IGNORED] * len(part) for part in (frame.before, frame.between, frame.after)
        )
        labels = [*before, *drawn.labels[:num], *between, *drawn.labels[num:], *after]
        return DrawnExample(ids, labels, kinds=kinds, relation=relation)

    def collate(self, drawn: Sequence[DrawnExample], material: Material, *, pad: int, device: str) -> Batch:
        inputs = {
            "input_ids": padded_rows([one.input_ids for one in drawn], pad, device=device),
            "attention_mask": padded_rows([[1] * len(one.input_ids) for one in drawn], 0, device=device),
            "token_type_ids": padded_rows([one.kinds for one in drawn], 0, device=device),
        }
        labels = padded_rows([one.labels for one in drawn], IGNORED, device=device)
        positions = labels != IGNORED
        return PairBatch(
            inputs,
            positions,
            labels[positions],
            relations=torch.tensor([one.relation for one in drawn], device=device),
            weights=positions.sum(-1).float(),
        )

    def student(self, model: Module) -> LogitsOf:
        return masked_logits(model)

    def loss(self, model: Module) -> Callable[[Batch], Tensor] | None:
        return pair_loss(model)


def _room(material: Material) -> int:
    return material.length - material.frame.num_pair


def _chunks(material: Material, start: int, end: int) -> Iterator[Piece]:
    """Runs of sentences that fit together, two at least, of which the second may be cut."""
    starts = _sentence_starts(material.corpus.flags(start, end))
    borders, room = [*(start + i for i in starts), end], _room(material)
    first, num_sentences = 0, len(starts)
    while first < num_sentences - 1:
        limit = borders[first] + room
        last = max(bisect.bisect_right(borders, limit) - 1, first + 2)
        stop = min(borders[last], limit)
        if stop <= borders[first + 1]:
            first += 1  # one sentence alone fills the room
            continue
        yield borders[first], stop
        first = last


def _sentence_starts(flags: Sequence[int]) -> list[int]:
    return [i for i, bits in enumerate(flags) if bits & STARTS_SENTENCE]


def _text(material: Material, piece: Piece) -> Text:
    return material.corpus.tokens(*piece), material.corpus.flags(*piece)


def _document(material: Material, piece: Piece) -> int:
    return bisect.bisect_right(material.corpus.ends, piece[0])


def _stranger(material: Material, pieces: Sequence[Piece], index: int, dice: random.Random) -> Text:
    """Sentences of another document, from one of them to the end of their run."""
    own = _document(material, pieces[index])
    for _ in range(NUM_TRIES):
        other = dice.choice(pieces)
        if _document(material, other) != own:
            ids, flags = _text(material, other)
            start = dice.choice(_sentence_starts(flags))
            return ids[start:], flags[start:]
    raise DataError(
        "pretrain: one document holds nearly all of the text, so that next_sentence "
        "finds no other to draw from; set document: row."
    )


def _fitted(first: Text, second: Text, room: int, dice: random.Random) -> tuple[Text, Text]:
    """Both within `room`: the longer loses a token at either end until they fit."""
    spans = [[0, len(first[0])], [0, len(second[0])]]
    while sum(stop - start for start, stop in spans) > room:
        longer = max(spans, key=lambda span: span[1] - span[0])
        if dice.random() < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
    return _cut(first, spans[0]), _cut(second, spans[1])


def _cut(text: Text, span: Sequence[int]) -> Text:
    return text[0][span[0] : span[1]], text[1][span[0] : span[1]]
