"""One GGUF file for llama.cpp and all that is built on it; packed grids keep their own codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcc.config.cards import card
from lcc.core.errors import RecipeError

Type = Literal[
    "auto",
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q5_1",
    "q5_0",
    "q4_1",
    "q4_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q4_k_m",
    "q4_k_s",
    "q3_k_m",
    "q3_k_s",
    "q2_k",
]
# What a type's rounding, and llama.cpp's eight bits for activations, do to logits; measured on
# random models, which forgive less than trained ones.
TOLERANCES = {"auto": 0.08, "f32": 0.01, "f16": 0.01, "bf16": 0.05, "q8_0": 0.08, "q6_k": 0.15,
              "q5": 0.25, "q4": 0.4, "q3": 0.7, "q2": 0.9}  # fmt: skip


@card
class Gguf:
    """`auto` takes packed 4- and 8-bit weights as they are, and writes dense ones as float16.

    `importance` is a folder of statistics (a `calibrate` step's), by which K-quants weigh errors;
    a recipe's export step has them made.
    """

    word: ClassVar[str] = "gguf"
    revision: ClassVar[int] = 1
    engine: ClassVar[str] = "llamacpp"
    unkeyed: ClassVar[tuple[str, ...]] = ("importance",)

    type: Type = "auto"
    importance: str | None = None

    @property
    def tolerance(self) -> float:
        """By the bits of most weights."""
        return TOLERANCES.get(self.type) or TOLERANCES[self.type[:2]]

    @property
    def wants_statistics(self) -> bool:
        """Whether an importance of inputs changes what is written."""
        return self.type.startswith(("q2", "q3", "q4", "q5", "q6"))

    def refusal(self, folder: Path) -> str | None:
        """Families that llama.cpp does not know, or this writer."""
        from lcc.export.gguf_metadata import refusal

        return refusal(folder)

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """`model.gguf`, and the source's tokenizer files beside it."""
        from lcc.calibration.statistics import StoredStats
        from lcc.export.gguf_writer import write_gguf
        from lcc.inference.sidecar import GGUF_FILE, write_sidecar

        stats = None
        if self.importance is not None:
            folder = Path(self.importance)
            stats = StoredStats(folder / "stats" if (folder / "stats").is_dir() else folder)
            if not len(stats):
                raise RecipeError(f"format.importance: no statistics lie in {folder}.")
        kind = self.type if self.type == "auto" else self.type.upper()
        facts = write_gguf(source, target / GGUF_FILE, kind=kind, importance=stats)
        write_sidecar(source, target, format="gguf", requires=(), loads_with="lcc")
        return facts
