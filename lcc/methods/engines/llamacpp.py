"""Run a GGUF file in llama.cpp, with continuous batching (`pip install lcc[llamacpp]`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.errors import ResourceError

if TYPE_CHECKING:
    from lcc.core.types import Head
    from lcc.inference.session import Opening, Session


@card
class Llamacpp:
    """Causal models of the Llama, Qwen and Gemma families; sampling and logits are ours to take."""

    word: ClassVar[str] = "llamacpp"
    revision: ClassVar[int] = 1
    format: ClassVar[str] = "gguf"
    package: ClassVar[str] = "cyllama"
    extra: ClassVar[str] = "llamacpp"
    heads: ClassVar[tuple[Head, ...]] = ("causal",)

    def refusal(self, folder: Path) -> str | None:
        """Why no GGUF of this checkpoint can be made or run."""
        from lcc.export.gguf_metadata import refusal

        if importlib.util.find_spec(self.package) is None:
            return "llama.cpp is not installed; pip install 'lcc[llamacpp]'."
        return refusal(folder)

    def rehearse(self, folder: Path) -> str | None:
        """Why llama.cpp cannot run the export in `folder`, found out in a process of its own."""
        from lcc.export.parity import texts
        from lcc.inference.backends.llama_cpp_probe import rehearse
        from lcc.inference.sidecar import GGUF_FILE

        return rehearse(folder / GGUF_FILE, texts())

    def open(self, folder: Path, opening: Opening) -> Session:
        """The folder's `model.gguf`; its chat template is the file's own."""
        if importlib.util.find_spec(self.package) is None:
            raise ResourceError("llama.cpp is not installed; pip install 'lcc[llamacpp]'.")
        from lcc.inference.backends.llama_cpp import open_gguf

        return open_gguf(folder, opening)
