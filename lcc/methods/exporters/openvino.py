"""Graphs for OpenVINO, by transformers' own exporter: decoders with their past, and encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcc.config.cards import card

TOLERANCES = {"float32": 0.005, "int8": 0.15, "int4": 0.5}


@card
class Openvino:
    """`weights` below float32 are rounded by the engine's own tools, without data."""

    word: ClassVar[str] = "openvino"
    revision: ClassVar[int] = 2
    engine: ClassVar[str] = "openvino"

    weights: Literal["float32", "int8", "int4"] = "float32"

    @property
    def tolerance(self) -> float:
        """By the bits of the weights."""
        return TOLERANCES[self.weights]

    def refusal(self, folder: Path) -> str | None:
        """Heads that no graph is made of."""
        from lcc.export.graph import refusal

        return refusal(folder, "openvino")

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """The graph in a folder of its own, and the source's tokenizer files beside it."""
        from lcc.export.graph import write_graph
        from lcc.inference.sidecar import write_sidecar

        facts = write_graph(source, target, "openvino", weights=self.weights)
        write_sidecar(source, target, format="openvino", requires=("openvino",), loads_with="lcc")
        return facts
