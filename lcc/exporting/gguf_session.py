"""An exported GGUF file as a session."""

from __future__ import annotations

from pathlib import Path

from lcc.core.errors import GateError
from lcc.exporting.gguf_writing import GGUF_FILE
from lcc.inference.companions import read_companions
from lcc.inference.llama_cpp import LlamaPasses, Model, load, room
from lcc.inference.sessions import Opening
from lcc.inference.turning import TurningSession


class GgufSession(TurningSession):
    """Also says how the file itself splits a text, which other programs will go by."""

    def __init__(self, model: Model, folder: Path, opening: Opening) -> None:
        beside = read_companions(folder)
        context = room(beside.context, opening.slots, opening.context)
        passes = LlamaPasses(model, slots=opening.slots, context=context, threads=opening.threads,
                             keeps=opening.prefix_mb > 0)  # fmt: skip
        super().__init__(passes, beside, opening, context=context)
        self._vocabulary = model.get_vocab()
        self.tokenizer.chat_template = model.get_default_chat_template() or None

    def own_ids(self, text: str) -> list[int]:
        """The tokens of a text as llama.cpp splits it, special ones in front included."""
        return [int(i) for i in self._vocabulary.tokenize(text, True, True)]


def open_gguf(folder: Path, opening: Opening) -> GgufSession:
    """The session of `model.gguf` in a folder; raises GateError where llama.cpp refuses it."""
    file = folder / GGUF_FILE
    read_companions(folder)
    try:
        model = load(file)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise GateError(f"{file}: llama.cpp does not load it ({error}).") from None
    return GgufSession(model, folder, opening)
