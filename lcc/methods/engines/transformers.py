"""Run a checkpoint as it lies, in this process, with continuous batching (always there)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from lcc.config.cards import card
from lcc.core.errors import LccError
from lcc.core.lazy import torch
from lcc.core.types import Head
from lcc.models.card import read_card

if TYPE_CHECKING:
    from lcc.inference.backends.whisper import Listener
    from lcc.inference.session import Opening, Session


@card
class Transformers:
    """PyTorch and transformers' own modelling code; every head that a card can have.

    `weights`: kept in memory as they are stored (bfloat16, or a grid's codes) and multiplied so,
    where two seconds show that this is faster here (`auto`), always (`stored`), or never (`dense`).
    The numbers are the same; sums differ in float32's last bits.
    """

    word: ClassVar[str] = "transformers"
    revision: ClassVar[int] = 1
    format: ClassVar[str] = "hf"
    package: ClassVar[str] = "transformers"
    extra: ClassVar[str] = ""
    heads: ClassVar[tuple[Head, ...]] = get_args(Head)

    weights: Literal["auto", "stored", "dense"] = "auto"

    def refusal(self, folder: Path) -> str | None:
        """Why the checkpoint cannot be opened, as its own reader says it; None if it can."""
        from lcc.models.card import examine

        try:
            examine(folder)
            read_card(folder)
        except LccError as error:
            return str(error)
        return None

    def open(self, folder: Path, opening: Opening) -> Session:
        """The checkpoint in memory, packed weights as the numbers they mean."""
        from lcc.inference.engine import InProcessSession
        from lcc.models.bundle import open_bundle

        torch.set_num_threads(opening.threads)
        bundle = open_bundle(folder)
        module, note, plain = None, "", opening.device == "cpu" and opening.dtype == "float32"
        if self.weights != "dense" and plain and bundle.card.head in ("causal", "seq2seq"):
            from lcc.inference.quantized_linear import as_stored

            module, note = as_stored(bundle, measure=self.weights == "auto")
        if module is None:
            module = bundle.load(device=opening.device, dtype=opening.dtype)
        session = InProcessSession(bundle, module, opening)
        session.note = note
        return session

    def listen(self, folder: Path, opening: Opening) -> Listener:
        """A checkpoint that transcribes, for the gate of an export."""
        from lcc.inference.backends.whisper import InProcessListener
        from lcc.models.bundle import open_bundle

        torch.set_num_threads(opening.threads)
        return InProcessListener(open_bundle(folder).load(device=opening.device))
