"""Graphs for ONNX Runtime, by transformers' own exporter: decoders with a past, and encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcc.config.cards import card

TOLERANCES = {"float32": 0.005, "int8": 0.15, "int4": 0.5}


@card
class Onnx:
    """`weights` below float32 are rounded by the engine's own tools, without data: of models that
    write in blocks of 32, of models that only read by row, with their inputs.
    """

    word: ClassVar[str] = "onnx"
    revision: ClassVar[int] = 3
    engine: ClassVar[str] = "onnxruntime"

    weights: Literal["float32", "int8"] = "float32"

    @property
    def tolerance(self) -> float:
        """By the bits of the weights."""
        return TOLERANCES[self.weights]

    def refusal(self, folder: Path) -> str | None:
        """Heads that no graph is made of."""
        from lcc.export.graph import refusal

        return refusal(folder, "onnx")

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """The graph in a folder of its own, and the source's tokenizer files beside it."""
        from lcc.export.graph import write_graph
        from lcc.inference.sidecar import write_sidecar

        facts = write_graph(source, target, "onnx", weights=self.weights)
        write_sidecar(source, target, format="onnx", requires=("onnxruntime",), loads_with="lcc")
        return facts
