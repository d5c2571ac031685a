"""Run an ONNX graph in ONNX Runtime (`pip install lcc[onnx]`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card

if TYPE_CHECKING:
    from lcc.core.types import Head
    from lcc.inference.session import Opening, Session


@card
class Onnxruntime:
    """Answers that join at any turn, written together where the graph lets them; readings."""

    word: ClassVar[str] = "onnxruntime"
    revision: ClassVar[int] = 1
    format: ClassVar[str] = "onnx"
    package: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"
    heads: ClassVar[tuple[Head, ...]] = ("causal", "seq2seq", "classify", "embed", "masked")

    def refusal(self, folder: Path) -> str | None:
        """Heads that no graph is made of."""
        from lcc.export.graph import refusal

        return refusal(folder, "onnx")

    def open(self, folder: Path, opening: Opening) -> Session:
        """The graph in `folder/graph`."""
        import onnxruntime

        from lcc.inference.backends.graph import open_graph

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = opening.threads, 1
        options.log_severity_level = 3  # errors only
        return open_graph(folder, opening, session_options=options)
