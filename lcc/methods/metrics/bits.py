"""Bits per byte: negative log-likelihood over the UTF-8 bytes of the text, whatever the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


@card
class BitsPerByte:
    """The measure that may be compared across vocabularies."""

    word: ClassVar[str] = "bits_per_byte"
    label: ClassVar[str] = "bits/byte"
    order: ClassVar[int] = 150
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "bits/byte"
    needs: ClassVar[Need] = "likelihood"
    higher_is_better: ClassVar[bool] = False

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: nats, bytes."""
        import numpy as np

        return np.array([[answer.nats, answer.num_bytes] for answer in answers], dtype=float)

    def score(self, sums: Floats) -> Floats:
        """nats / ln 2 / bytes."""
        import numpy as np

        return np.asarray(sums[..., 0] / math.log(2) / np.maximum(sums[..., 1], 1))

    def signature(self, language: str) -> str:
        return "bits_per_byte|bytes:UTF-8"


# -----------------------------------------------------------------------------
# Bits per character: negative log-likelihood over the characters of the text.


@card
class BitsPerCharacter:
    """Comparable across vocabularies; a Chinese character is one here and three bytes there."""

    word: ClassVar[str] = "bits_per_character"
    label: ClassVar[str] = "bits/character"
    order: ClassVar[int] = 160
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "bits/character"
    needs: ClassVar[Need] = "likelihood"
    higher_is_better: ClassVar[bool] = False

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: nats, characters."""
        import numpy as np

        return np.array([[one.nats, one.num_characters] for one in answers], dtype=float)

    def score(self, sums: Floats) -> Floats:
        """nats / ln 2 / characters."""
        import numpy as np

        return np.asarray(sums[..., 0] / math.log(2) / np.maximum(sums[..., 1], 1))

    def signature(self, language: str) -> str:
        return "bits_per_character|characters:Unicode code points"
