"""Masked language modelling: guess hidden tokens from both sides (BERT; Devlin et al., 2019)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.tasks.encode import IGNORED, padded_rows
from lcc.training.batches import Batch, LogitsOf
from lcc.training.loss import masked_logits
from lcc.training.pretraining import STARTS_WORD, DrawnExample, Material, Piece, document_pieces, require_mask

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.core.types import Head

Share = Annotated[float, Field(ge=0, le=1)]


@card
class Masking:
    """BERT's masks (Devlin et al., 2019): of the chosen tokens most become the mask token.

    `random_share` of them become any other token and the rest stay; `whole_words` chooses all
    tokens of a word together.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask_share: Share = 0.8
    random_share: Share = 0.1
    whole_words: bool = False

    def __post_init__(self) -> None:
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share and random_share are more than 1 together")


@dataclass(frozen=True)
class MaskedTokens:
    """Tokens as the model sees them, and the true ones where it must guess."""

    ids: list[int]
    labels: list[int]


def masked(
    ids: Sequence[int],
    flags: Sequence[int],
    masking: Masking,
    *,
    mask: int,
    ordinary: Sequence[int],
    dice: random.Random,
) -> MaskedTokens:
    """`ids` with a share of them hidden, at least one; what else stands there is `ordinary`."""
    shown, labels = list(ids), [IGNORED] * len(ids)
    for place in _masked_places(flags, masking, dice):
        labels[place] = ids[place]
        fate = dice.random()
        if fate < masking.mask_share:
            shown[place] = mask
        elif fate < masking.mask_share + masking.random_share:
            shown[place] = dice.choice(ordinary)
    return MaskedTokens(shown, labels)


def _masked_places(flags: Sequence[int], masking: Masking, dice: random.Random) -> list[int]:
    """Places to hide: whole groups in random order, as many as fit into the share."""
    groups = _words(flags) if masking.whole_words else [[i] for i in range(len(flags))]
    room = max(1, round(masking.share * len(flags)))
    dice.shuffle(groups)
    places: list[int] = []
    for group in groups:
        if len(places) + len(group) <= room:
            places += group
        if len(places) == room:
            break
    if not places:  # a short text of long words may have none that fits
        places = min(groups, key=len)
    return sorted(places)


def _words(flags: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for place, bits in enumerate(flags):
        if bits & STARTS_WORD or not groups:
            groups.append([])
        groups[-1].append(place)
    return groups


# Guess hidden tokens from both sides (BERT; Devlin et al., 2019), hidden anew in every epoch.


@card
class Masked:
    """Examples are pieces of one document. Masks that change are RoBERTa's (Liu et al., 2019)."""

    word: ClassVar[str] = "masked"
    revision: ClassVar[int] = 1
    head: ClassVar[Head] = "masked"
    by_sentence: ClassVar[bool] = False
    marks_ends: ClassVar[bool] = False

    masking: Masking = field(default_factory=Masking)

    def pieces(self, material: Material) -> list[Piece]:
        require_mask(material)
        return document_pieces(material, material.length - material.frame.num_single)

    def draw(
        self, material: Material, pieces: Sequence[Piece], index: int, dice: random.Random
    ) -> DrawnExample:
        assert material.mask is not None
        ids, flags = material.corpus.tokens(*pieces[index]), material.corpus.flags(*pieces[index])
        drawn = masked(ids, flags, self.masking, mask=material.mask, ordinary=material.ordinary, dice=dice)
        frame = material.frame
        before, after = [IGNORED] * len(frame.before), [IGNORED] * len(frame.after)
        return DrawnExample(frame.single(drawn.ids), [*before, *drawn.labels, *after])

    def collate(self, drawn: Sequence[DrawnExample], material: Material, *, pad: int, device: str) -> Batch:
        ids = padded_rows([one.input_ids for one in drawn], pad, device=device)
        seen = padded_rows([[1] * len(one.input_ids) for one in drawn], 0, device=device)
        labels = padded_rows([one.labels for one in drawn], IGNORED, device=device)
        positions = labels != IGNORED
        return Batch({"input_ids": ids, "attention_mask": seen}, positions, labels[positions])

    def student(self, model: Module) -> LogitsOf:
        return masked_logits(model)

    def loss(self, model: Module) -> Callable[[Batch], Tensor] | None:
        return None
