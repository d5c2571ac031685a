"""Run a CTranslate2 folder: whole answers in micro-batches (`pip install lcc[ctranslate2]`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.errors import ResourceError

if TYPE_CHECKING:
    from lcc.core.types import Head
    from lcc.inference.backends.whisper import Listener
    from lcc.inference.session import Opening, Session


@card
class Ctranslate2:
    """Greedy, beams and sampling are its own; requests that came together run together."""

    word: ClassVar[str] = "ctranslate2"
    revision: ClassVar[int] = 1
    format: ClassVar[str] = "ctranslate2"
    package: ClassVar[str] = "ctranslate2"
    extra: ClassVar[str] = "ctranslate2"
    heads: ClassVar[tuple[Head, ...]] = ("causal", "seq2seq", "embed")

    def refusal(self, folder: Path) -> str | None:
        """Families that CTranslate2 does not know."""
        from lcc.export.ctranslate2 import refusal
        from lcc.models.card import read_card

        card = read_card(folder)
        if card.head == "transcribe":
            return f"engines answer texts, and {card.name!r} transcribes sounds; export it."
        return refusal(folder)

    def listen(self, folder: Path, opening: Opening) -> Listener:
        """A folder whose model transcribes, for its gate."""
        from lcc.inference.backends.ctranslate2 import open_ct2_listener

        return open_ct2_listener(folder, opening)

    def open(self, folder: Path, opening: Opening) -> Session:
        """The folder's `model.bin`."""
        import importlib.util

        from lcc.export.ctranslate2 import MISSING

        if importlib.util.find_spec(self.package) is None:
            raise ResourceError(MISSING)
        from lcc.inference.backends.ctranslate2 import open_ct2

        return open_ct2(folder, opening)
