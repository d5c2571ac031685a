"""bitsandbytes' rows of int8 or blocks of NF4, as transformers saves and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcc.config.cards import card


@card
class Bitsandbytes:
    """A checkpoint that is in the format is copied; NF4 has double scales."""

    word: ClassVar[str] = "bitsandbytes"
    revision: ClassVar[int] = 1
    engine: ClassVar[str] = "transformers"

    bits: Literal[4, 8] = 8

    @property
    def tolerance(self) -> float:
        """By the bits."""
        return 0.08 if self.bits == 8 else 0.4

    def refusal(self, folder: Path) -> str | None:
        """Checkpoints packed in another format, and those with an adapter."""
        from lcc.export.compressed_tensors import refusal

        return refusal(folder, "bitsandbytes")

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """As `from_pretrained` reads it."""
        from lcc.export.compressed_tensors import copied, pack_bitsandbytes

        if copied(source, target, "bitsandbytes"):
            return {"copied": True}
        return pack_bitsandbytes(source, target, bits=self.bits)
