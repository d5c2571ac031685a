"""The checkpoint as it lies: safetensors, config and tokenizer, as `from_pretrained` reads them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lcc.config.cards import card


@card
class Hf:
    """A copy, so that its parity is that of bytes."""

    word: ClassVar[str] = "hf"
    revision: ClassVar[int] = 1
    engine: ClassVar[str] = ""  # nothing to load: every file is compared

    @property
    def tolerance(self) -> float:
        """Nothing may differ."""
        return 0.0

    def refusal(self, folder: Path) -> str | None:
        """Every checkpoint can be copied."""
        return None

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """All files."""
        shutil.copytree(source, target, dirs_exist_ok=True)
        return {}
