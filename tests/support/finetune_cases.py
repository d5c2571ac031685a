"""A tiny world to fine-tune in: real checkpoints, real data on disk, a task that can be learnt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lcc.core.progress import Progress
from lcc.distributed.dist import SINGLE, Dist
from lcc.methods.trackers.none import NoneTracker
from lcc.models.bundle import Bundle, open_bundle
from lcc.pipeline.stage import Context
from lcc.tasks.task import Task

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", ":", "up", "down"]
COPY = Task(name="copy", fields=("source", "target"), template="{source} :", answer=" {target}")
PAIRS = Task(
    name="pairs", head="seq2seq", fields=("source", "target"), template="{source}", answer="{target}"
)
MOOD = Task(
    name="mood", head="classify", fields=("source", "label"), template="{source}",
    answer="{label}", labels=("up", "down"),
)  # fmt: skip


def write_data(folder: Path, num: int = 48) -> Path:
    dice = random.Random(0)
    data = folder / "data"
    data.mkdir(parents=True)
    for split, size in (("train", num), ("validation", 8), ("test", 8)):
        lines = []
        for i in range(size):
            words = dice.choices(WORDS, k=dice.randint(2, 7))
            label = "up" if words[0] < "s" else "down"
            row = {
                "id": f"{split}{i}",
                "doc": str(i),
                "source": " ".join(words),
                "target": " ".join(words[:2]),
                "label": label,
            }
            lines.append(json.dumps(row) + "\n")
        (data / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = {"read": num, "removed": {}, "left_out": {}, "rows": {}, "documents": {}}
    (data / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    return folder


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate([*SPECIALS, *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def config(head: str) -> Any:
    size = len(SPECIALS) + len(WORDS)
    if head == "causal":
        return transformers.LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    if head == "seq2seq":
        return transformers.T5Config(
            vocab_size=size,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
        )
    return transformers.BertConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )


def write_model(folder: Path, head: str = "causal") -> Path:
    kinds = {
        "causal": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "classify": transformers.AutoModel,
    }
    torch.manual_seed(0)
    model = kinds[head].from_config(config(head))
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    return folder


def bundle(folder: Path) -> Bundle:
    return open_bundle(folder / "model")


def context(work: Path, data: Path, task: Task = COPY, **changes: Any) -> Context:
    work.mkdir(parents=True, exist_ok=True)
    inputs = {"data": data, **changes.pop("inputs", {})}
    dist: Dist = changes.pop("dist", SINGLE)
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "dtype": "float32", **changes}
    settings.setdefault("tracker", NoneTracker())
    return Context(
        folder=work, dist=dist, progress=Progress(quiet=True), task=task, inputs=inputs, **settings
    )


def curves(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "curves.jsonl").read_text().splitlines()]
