"""A GGUF file and a Modelfile for `ollama create`, with the chat template in ollama's language."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lcc.config.cards import card
from lcc.methods.exporters.gguf import TOLERANCES, Type


@card
class Ollama:
    """`type` is the GGUF file's; a template that ollama's language cannot say is refused."""

    word: ClassVar[str] = "ollama"
    revision: ClassVar[int] = 1
    engine: ClassVar[str] = "llamacpp"

    type: Type = "auto"

    @property
    def tolerance(self) -> float:
        """The GGUF file's."""
        return TOLERANCES.get(self.type) or TOLERANCES[self.type[:2]]

    def refusal(self, folder: Path) -> str | None:
        """What no GGUF is written of, and chat templates that are not of the simple form."""
        from lcc.export.gguf_metadata import refusal
        from lcc.export.ollama import refusal as template_refusal

        return refusal(folder) or template_refusal(folder)

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """`model.gguf` and `Modelfile`."""
        from lcc.export.ollama import write_modelfile
        from lcc.methods.exporters.gguf import Gguf

        facts = dict(Gguf(type=self.type).write(source, target))
        write_modelfile(source, target)
        return facts
