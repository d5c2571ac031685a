"""Where an exported graph lies in an export's folder, whose code reads it, and its empty past."""

from __future__ import annotations

import importlib
from typing import Any

from lcc.core.lazy import torch, transformers

GRAPH_FOLDER = "graph"  # of its own, as transformers calls its report as we call ours
WHOLE, ENCODER, DECODER = "model", "encoder", "decoder"  # its parts: one, or two


def exporters() -> Any:
    """`transformers.exporters`, imported when asked for: it takes a second."""
    return importlib.import_module("transformers.exporters")


def empty_past(config: Any) -> Any:
    """The keys and values that an answer begins with: of the decoder's own layers, no token."""
    past = transformers.DynamicCache(config=config.get_text_config(decoder=True))
    if config.is_encoder_decoder:
        heads = getattr(config, "decoder_attention_heads", None) or config.num_heads
        width = getattr(config, "d_kv", None) or config.d_model // heads
    else:
        heads, width = config.num_key_value_heads, getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
    for layer in range(len(past.layers)):
        nothing = torch.zeros(1, heads, 0, width)
        past.update(nothing, nothing.clone(), layer)
    return past
