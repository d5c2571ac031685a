"""CTranslate2's folder: decoders, encoder–decoders and encoders, at eight bits by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcc.config.cards import card

# Eight bits round inputs too, which costs a model with rare large ones much and others nothing: it
# is rehearsed, and what is allowed is never more than formats of four bits are.
TOLERANCES = {"float32": 0.01, "float16": 0.02, "bfloat16": 0.08, "int8": 0.4, "int16": 0.02}


@card
class Ctranslate2:
    """`quantization` is how weights are stored; eight-bit ones are multiplied as such."""

    word: ClassVar[str] = "ctranslate2"
    revision: ClassVar[int] = 1
    engine: ClassVar[str] = "ctranslate2"

    quantization: Literal["int8", "int16", "float16", "bfloat16", "float32"] = "int8"

    @property
    def tolerance(self) -> float:
        """By the type of the weights; of eight bits the most that a rehearsal may explain."""
        return TOLERANCES[self.quantization]

    @property
    def rehearses(self) -> bool:
        """Whether `rounded` says what the format explains."""
        return self.quantization == "int8"

    def rounded(self, module: Any) -> Any:
        """Weights by row and inputs by token, as CTranslate2 multiplies them; in place."""
        from lcc.export.ctranslate2 import round_to_eight_bits

        return round_to_eight_bits(module)

    def refusal(self, folder: Path) -> str | None:
        """Families that CTranslate2 does not know."""
        from lcc.export.ctranslate2 import refusal

        return refusal(folder)

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """`model.bin` with its vocabulary, and the source's tokenizer files beside it."""
        from lcc.export.ctranslate2 import window, write_ct2
        from lcc.inference.sidecar import write_sidecar

        facts = write_ct2(source, target, quantization=self.quantization)
        longest = None
        if (source_window := window(source)) is not None:
            longest, facts["longest_text"] = source_window, source_window
        write_sidecar(
            source, target, format="ctranslate2", requires=("ctranslate2",), loads_with="lcc", longest=longest
        )
        return facts
