"""Run an OpenVINO graph (`pip install lcc[openvino]`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card

if TYPE_CHECKING:
    from lcc.core.types import Head
    from lcc.inference.session import Opening, Session


@card
class Openvino:
    """Answers that join at any turn, written together where the graph lets them; readings."""

    word: ClassVar[str] = "openvino"
    revision: ClassVar[int] = 1
    format: ClassVar[str] = "openvino"
    package: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    heads: ClassVar[tuple[Head, ...]] = ("causal", "seq2seq", "classify", "embed", "masked")

    def refusal(self, folder: Path) -> str | None:
        """Heads that no graph is made of."""
        from lcc.export.graph import refusal

        return refusal(folder, "openvino")

    def open(self, folder: Path, opening: Opening) -> Session:
        """The graph in `folder/graph`, computed in float32 whatever the processor would prefer."""
        from lcc.inference.backends.graph import open_graph

        options = {"INFERENCE_NUM_THREADS": opening.threads, "INFERENCE_PRECISION_HINT": "f32"}
        return open_graph(folder, opening, config=options)
