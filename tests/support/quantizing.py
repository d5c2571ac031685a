"""Tiny models quantized by the stage, for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import torch
import transformers

from lcc.config.cards import decode
from lcc.models.checkpoint import save
from lcc.stages.calibrate import Calibrate
from lcc.stages.quantize import Quantize

# bitsandbytes' CPU kernel takes inputs that are multiples of 64.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
FAMILIES = {
    "llama": lambda: tiny.llama(**WIDE),
    "gemma3": lambda: tiny.gemma3(**WIDE),
    "bert": lambda: tiny.bert(hidden_size=64, intermediate_size=128),
    "marian": lambda: tiny.marian(64),
}
AUTO = {
    "causal": transformers.AutoModelForCausalLM,
    "classify": transformers.AutoModelForSequenceClassification,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
EVERY_FAMILY = {
    **FAMILIES,
    "qwen3": lambda: tiny.qwen3(**WIDE),
    "t5": lambda: tiny.t5(d_model=64, d_ff=128, d_kv=16),
}


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 17).view(2, 6)
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **extra).logits.float()
    return found


def calibrated(model: Any, folder: Path) -> Path:
    bundle = tiny.bundle(model, dtype="bfloat16")
    decode(Calibrate, {"gram": True}).run(bundle, tiny.context(folder / "stats"))
    return folder / "stats"


def quantized(model: Any, folder: Path, inputs: Any = None, **options: Any) -> Any:
    bundle = tiny.bundle(model, dtype="bfloat16")
    context = tiny.context(folder)
    context.inputs |= inputs or {}
    outcome = decode(Quantize, options).run(bundle, context)
    save(bundle, folder / "model")
    return bundle, outcome
