"""The packed integers of compressed-tensors, which vLLM and transformers read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card


@card
class CompressedTensors:
    """A packed checkpoint is copied, whatever the fields say; a dense one is rounded to nearest."""

    word: ClassVar[str] = "compressed_tensors"
    revision: ClassVar[int] = 1
    engine: ClassVar[str] = "transformers"

    bits: Literal[4, 8] = 8
    group_size: Annotated[int, Field(ge=8)] = 32
    symmetric: bool = True

    @property
    def tolerance(self) -> float:
        """By the bits."""
        return 0.05 if self.bits == 8 else 0.4

    def refusal(self, folder: Path) -> str | None:
        """Checkpoints packed in another format, and those with an adapter."""
        from lcc.export.compressed_tensors import refusal

        return refusal(folder, "compressed-tensors")

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """As `from_pretrained` reads it."""
        from lcc.export.compressed_tensors import copied, pack_integers

        if copied(source, target, "compressed-tensors"):
            return {"copied": True}
        return pack_integers(
            source, target, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric
        )
