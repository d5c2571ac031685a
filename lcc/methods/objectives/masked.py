"""Guess hidden tokens from both sides (BERT; Devlin et al., 2019), hidden anew in every epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.engine.encoder_heads import masked_logits
from lcc.engine.masking import Masking, masked
from lcc.engine.objectives import Batch, LogitsOf
from lcc.engine.pretraining import (
    Drawn,
    Material,
    Piece,
    document_pieces,
    padded_rows,
    require_mask,
)
from lcc.parts.encoding import IGNORED

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.parts.checkpoint import Head


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
    ) -> Drawn:
        assert material.mask is not None
        ids, flags = material.corpus.tokens(*pieces[index]), material.corpus.flags(*pieces[index])
        found = masked(ids, flags, self.masking, mask=material.mask, ordinary=material.ordinary,
                       dice=dice)  # fmt: skip
        frame = material.frame
        before, after = [IGNORED] * len(frame.before), [IGNORED] * len(frame.after)
        return Drawn(frame.single(found.ids), [*before, *found.labels, *after])

    def collate(
        self, drawn: Sequence[Drawn], material: Material, *, pad: int, device: str
    ) -> Batch:
        ids = padded_rows([one.input_ids for one in drawn], pad, device)
        seen = padded_rows([[1] * len(one.input_ids) for one in drawn], 0, device)
        labels = padded_rows([one.labels for one in drawn], IGNORED, device)
        positions = labels != IGNORED
        return Batch({"input_ids": ids, "attention_mask": seen}, positions, labels[positions])

    def student(self, model: Module) -> LogitsOf:
        return masked_logits(model)

    def loss(self, model: Module) -> Callable[[Batch], Tensor] | None:
        return None
