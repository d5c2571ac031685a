"""Rows of skewed lengths to train on, as token ids: every system reads the very same."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

MEDIAN, SPREAD, SHORTEST, LONGEST = 60, 0.9, 8, 512  # tokens of a row; log-normal, cut off
IGNORED = -100
WORDS = 8000  # of the pair model's vocabulary


def length(dice: random.Random) -> int:
    return min(LONGEST, max(SHORTEST, round(dice.lognormvariate(0, SPREAD) * MEDIAN)))


def causal_rows(tokenizer: Any, text: str, *, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Pieces of a text, a third of each its prompt: what is masked is read but not scored."""
    dice, rows, total = random.Random(seed), list[dict[str, Any]](), 0
    ids = tokenizer(text[: 12 * tokens])["input_ids"]
    while total < tokens:
        size = length(dice)
        piece = ids[total : total + size]
        prompt = max(1, size // 3)
        rows.append({"input_ids": piece, "labels": [IGNORED] * prompt + piece[prompt:]})
        total += size
    return rows


def pair_rows(*, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Random ids; a target is 0.6 to 1.4 times as long as its source."""
    dice, rows, total = random.Random(seed), list[dict[str, Any]](), 0
    while total < tokens:
        source = length(dice)
        target = min(LONGEST, max(2, round(source * dice.uniform(0.6, 1.4))))
        source_ids, labels = ([dice.randrange(10, WORDS) for _ in range(n)] for n in (source, target))
        rows.append({"input_ids": source_ids, "labels": labels})
        total += source + target
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def pair_model(folder: Path) -> Path:
    """A random T5 of 20 M parameters with a tokenizer of numbered words, built once."""
    if (folder / "model.safetensors").is_file():
        return folder
    import tokenizers
    import torch
    import transformers

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, WORDS)}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=WORDS,
        d_model=384,
        d_kv=64,
        d_ff=1536,
        num_layers=4,
        num_heads=6,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
