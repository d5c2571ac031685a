"""Bits per character: negative log-likelihood over the characters of the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.parts.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.parts.metrics import Floats


@card
class BitsPerCharacter:
    """Comparable across vocabularies; a Chinese character is one here and three bytes there."""

    word: ClassVar[str] = "bits_per_character"
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
