"""The reload gate of adapters: what is on disk, put on its base again, is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcc.core.measure import Measure
from lcc.engine.adapting import base_for, fills_zeros, hush, read_note
from lcc.engine.sparse_training import mask_adapters
from lcc.parts.adapters import put_adapter
from lcc.parts.allocator import return_freed
from lcc.parts.gate import ROUNDED, compare, probe_logits
from lcc.parts.model import Bundle, open_bundle


def adapter_gate(bundle: Bundle, folder: Path, *, parent: Path) -> dict[str, Measure]:
    """Compare logits of the adapter in `folder` on the base in `parent` with those in memory.

    The bundle lets go of its model, so that two never lie in memory together. Raises GateError.
    """
    model: Any = bundle.module
    expected, is_half = probe_logits(model), "float32" not in str(model.dtype)
    bundle.release()
    bundle.write = None
    del model
    return_freed()
    hush()
    base, note = open_bundle(parent), read_note(folder)
    masked = fills_zeros(base)
    module = put_adapter(base_for(base, note, seed=0), folder)
    if masked:
        mask_adapters(module)
    noise = ROUNDED * float(expected.abs().max()) if is_half else 0.0
    difference = compare(expected, probe_logits(module), folder, "dense", noise=noise)
    return {"reload_max_logit_difference": difference}
