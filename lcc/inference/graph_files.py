"""Where an exported graph lies in an export's folder, and whose code reads and writes it."""

from __future__ import annotations

import importlib
from typing import Any

GRAPH_FOLDER = "graph"  # of its own, as transformers calls its report as we call ours


def exporters() -> Any:
    """`transformers.exporters`, imported when asked for: it takes a second."""
    return importlib.import_module("transformers.exporters")
