"""What is traced of a model, part by part, and what each part is called with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lcc.inference.graph_files import WHOLE

if TYPE_CHECKING:
    Parts = dict[str, tuple[Any, dict[str, Any]]]


def parts(module: Any, head: str) -> Parts:
    """Name → part and inputs: of two texts each, so that their number stays open."""
    ids = torch.arange(4, 16).view(2, 6) % module.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if head != "causal":
        return {WHOLE: (module.base_model if head == "embed" else module, inputs)}
    from transformers.exporters.utils import decompose_for_generation

    # One graph that goes on from any past, an empty one too, so that weights are stored once.
    found = decompose_for_generation(module, inputs, multi_token_decode=True)
    part, called = found["decode"]
    return {WHOLE: (part, dict(called))}
