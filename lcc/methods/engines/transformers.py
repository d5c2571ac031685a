"""Run a checkpoint as it lies, in this process, with continuous batching (always there)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, get_args

from lcc.core.decode import card
from lcc.core.errors import LccError
from lcc.core.lazy import torch
from lcc.parts.checkpoint import Head, read_card

if TYPE_CHECKING:
    from lcc.inference.sessions import Opening, Session


@card
class Transformers:
    """PyTorch and transformers' own modelling code; every head that a card can have."""

    revision: ClassVar[int] = 1
    format: ClassVar[str] = "hf"
    package: ClassVar[str] = "transformers"
    extra: ClassVar[str] = ""
    heads: ClassVar[tuple[Head, ...]] = get_args(Head)

    def refusal(self, folder: Path) -> str | None:
        """Why the checkpoint cannot be opened, as its own reader says it; None if it can."""
        from lcc.parts.folder import examine

        try:
            examine(folder)
            read_card(folder)
        except LccError as error:
            return str(error)
        return None

    def open(self, folder: Path, opening: Opening) -> Session:
        """The checkpoint in memory, packed weights as the numbers they mean."""
        from lcc.inference.in_process import InProcessSession
        from lcc.parts.model import open_bundle

        torch.set_num_threads(opening.threads)
        bundle = open_bundle(folder)
        module = bundle.load(device=opening.device, dtype=opening.dtype)
        return InProcessSession(bundle, module, opening)
