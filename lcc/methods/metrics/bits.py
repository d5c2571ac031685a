"""Bits per byte and per character: negative log-likelihood over the length of the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


class Bits:
    """Comparable across vocabularies, as the length is not counted in tokens."""

    needs: ClassVar[Need] = "likelihood"
    higher_is_better: ClassVar[bool] = False
    length: ClassVar[str]  # the field of an answer that counts the text

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: nats, length."""
        import numpy as np

        return np.array([[one.nats, getattr(one, self.length)] for one in answers], dtype=float)

    def score(self, sums: Floats) -> Floats:
        """nats / ln 2 / length."""
        import numpy as np

        return np.asarray(sums[..., 0] / math.log(2) / np.maximum(sums[..., 1], 1))


@card
class BitsPerByte(Bits):
    """Over the UTF-8 bytes of the text."""

    word: ClassVar[str] = "bits_per_byte"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "bits/byte"
    order: ClassVar[int] = 150
    unit: ClassVar[str] = "bits/byte"
    length: ClassVar[str] = "num_bytes"

    def signature(self, language: str) -> str:
        return "bits_per_byte|bytes:UTF-8"


@card
class BitsPerCharacter(Bits):
    """Over the characters of the text; a Chinese character is one here and three bytes there."""

    word: ClassVar[str] = "bits_per_character"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "bits/character"
    order: ClassVar[int] = 160
    unit: ClassVar[str] = "bits/character"
    length: ClassVar[str] = "num_characters"

    def signature(self, language: str) -> str:
        return "bits_per_character|characters:Unicode code points"
