"""The matrix products that a training cannot do without, and how long they alone would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RANK = 16  # of the LoRA cases


def seconds_of(model: Path, rows: Path, method: str, *, flops: float) -> float:
    """Seconds a useful token of these rows takes at `flops`, in products alone.

    Forward, gradients of inputs, and gradients of the trained weights; the output layer at the
    targets, attention over what a token may see.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    lines = json.loads(rows.read_text(encoding="utf-8"))
    count = _pairs if config["model_type"] == "t5" else _causal
    total, tokens = count(config, lines, method)
    return total / flops / tokens


def _causal(config: dict[str, Any], rows: list[Any], method: str) -> tuple[float, int]:
    width, inner, blocks = (config[n] for n in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    keys = size * config.get("num_key_value_heads", heads)
    shapes = [
        (size * heads, width),
        (keys, width),
        (keys, width),
        (width, size * heads),
        (inner, width),
        (inner, width),
        (width, inner),
    ]
    tokens = sum(len(r["input_ids"]) for r in rows)
    targets = sum(label != -100 for r in rows for label in r["labels"][1:])
    seen = sum(len(r["input_ids"]) * (len(r["input_ids"]) + 1) / 2 for r in rows)
    linear = 2.0 * tokens * blocks * sum(o * i for o, i in shapes)
    head = 2.0 * targets * config["vocab_size"] * width
    attention = 4.0 * seen * blocks * heads * size
    # The first block's queries, keys and values need no gradient of their input under LoRA.
    if method == "lora":
        first = 2.0 * tokens * sum(o * i for o, i in shapes[:3])
        low = 6.0 * tokens * blocks * RANK * sum(o + i for o, i in shapes)
        return 2 * linear - first + low + 2 * head + 3 * attention, tokens
    return 3 * linear + 3 * head + 3 * attention, tokens


def _pairs(config: dict[str, Any], rows: list[Any], method: str) -> tuple[float, int]:
    width, inner, blocks = config["d_model"], config["d_ff"], config["num_layers"]
    all_heads = config["d_kv"] * config["num_heads"]
    source = sum(len(r["input_ids"]) for r in rows)
    target = sum(len(r["labels"]) for r in rows)
    one = 4 * all_heads * width
    encoder = source * (one + 2 * inner * width)
    decoder = target * (one + 2 * inner * width + 2 * all_heads * width)
    crossing = source * 2 * all_heads * width
    linear = 2.0 * blocks * (encoder + decoder + crossing)
    head = 2.0 * target * config["vocab_size"] * width
    seen = sum(
        len(r["input_ids"]) ** 2
        + len(r["labels"]) * len(r["input_ids"])
        + len(r["labels"]) * (len(r["labels"]) + 1) / 2
        for r in rows
    )
    assert method == "full", method
    return 3 * (linear + head + 4.0 * seen * blocks * all_heads), source + target
