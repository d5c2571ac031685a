"""Tiny random models and a stand-in context for the compression stages' tests."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lcc.core.progress import Progress
from lcc.core.types import AUTO_CLASSES
from lcc.distributed.dist import SINGLE
from lcc.models.bundle import Bundle
from lcc.models.card import Card
from lcc.tasks.encode import Example

WORDS = "the file system could not open a new window because memory is full 你好 世界 打开 文件"


def rows(num: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    words = WORDS.split()
    return [
        {"id": str(i), "doc": str(i), "text": " ".join(draw.choices(words, k=draw.randint(4, 9)))}
        for i in range(num)
    ]


@dataclass
class TextTask:
    """The least of a Task: a row is its text."""

    head: str = "causal"
    shots: int = 0
    is_cloze: bool = False

    def for_data(self, data: Any) -> TextTask:
        return self

    def text(self, row: dict[str, Any]) -> str:
        return str(row["text"])

    def prompt(self, row: dict[str, Any], demos: Any = ()) -> str:
        return " ".join([*(str(d["text"]) for d in demos), str(row["text"])])

    def encode(self, row: dict[str, Any], tokenizer: Any, *, max_length: int) -> Any:
        ids = tokenizer(self.text(row))["input_ids"][:max_length]
        labels = 0 if self.head == "classify" else list(ids)
        return Example(ids, labels)


@dataclass
class Rows:
    splits: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"train": rows(40, 0), "validation": rows(8, 1)}
    )

    def rows(self, split: str) -> list[dict[str, Any]]:
        return self.splits[split]


def context(folder: Path, **changes: Any) -> Any:
    task = changes.pop("task", TextTask())
    settings = {"folder": folder, "seed": 0, "device": "cpu", "dtype": "float32", "inputs": {}}
    settings |= {"progress": Progress(quiet=True), "dist": SINGLE, "state": folder / "state"}
    (folder / "state").mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(data=Rows(), required_task=task, task=task, **settings, **changes)


def byte_level_tokenizer(vocab_size: int = 400) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE trained on more words than the rows use, so that there is what to cut."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<unused0>"]
    other = "unrelated vocabulary entries quickly bring many further pieces into being " * 3
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS * 3, other], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, **IDS,
}  # fmt: skip


def llama(**changes: Any) -> Any:
    config = transformers.LlamaConfig(**{**DECODER, "tie_word_embeddings": True, **changes})
    return _seeded(transformers.LlamaForCausalLM, config)


def qwen3(**changes: Any) -> Any:
    return _seeded(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**{**DECODER, **changes}))


def gemma3(**changes: Any) -> Any:
    config = transformers.Gemma3TextConfig(**{**DECODER, **changes})
    return _seeded(transformers.Gemma3ForCausalLM, config)


def gpt2(**changes: Any) -> Any:
    sizes = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = transformers.GPT2Config(**{**sizes, **IDS, **changes})
    return _seeded(transformers.GPT2LMHeadModel, config)


def bert(head: Any = transformers.BertForSequenceClassification, **changes: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.BertConfig(
        vocab_size=400, num_attention_heads=4, pad_token_id=0, **{**sizes, **changes}
    )
    return _seeded(head, config)


def t5(projection: str = "relu", **changes: Any) -> Any:
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    settings = {"feed_forward_proj": projection, "decoder_start_token_id": 0, **IDS}
    config = transformers.T5Config(vocab_size=400, **{**sizes, **settings, **changes})
    return _seeded(transformers.T5ForConditionalGeneration, config)


def marian(width: int = 32) -> Any:
    config = transformers.MarianConfig(
        vocab_size=400,
        d_model=width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_start_token_id=0,
        forced_eos_token_id=2,
        **IDS,
    )
    return _seeded(transformers.MarianMTModel, config)


def whisper(**changes: Any) -> Any:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 8}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 48}
    sizes |= {"max_source_positions": 12, "max_target_positions": 32}
    unsuppressed = {"suppress_tokens": None, "begin_suppress_tokens": None}
    config = transformers.WhisperConfig(
        vocab_size=400, decoder_start_token_id=1, **{**sizes, **unsuppressed, **IDS, **changes}
    )
    return _seeded(transformers.WhisperForConditionalGeneration, config)


def vit(**changes: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "image_size": 8, "patch_size": 4}
    config = transformers.ViTConfig(**{**sizes, **changes})
    return _seeded(transformers.ViTForImageClassification, config)


def inputs(model: Any) -> dict[str, Any]:
    """What any of these models can be asked: text, an image, or sound."""
    draws = torch.Generator().manual_seed(3)
    ids = torch.arange(5, 17).view(2, 6)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=draws)}
    if model.main_input_name == "input_features":
        features = torch.randn(2, 8, 24, generator=draws)
        return {"input_features": features, "decoder_input_ids": ids}
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**text, "decoder_input_ids": ids} if model.config.is_encoder_decoder else text


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 17).view(2, 6)
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **extra).logits
    return found


def _seeded(cls: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "bias" in name:
                parameter.normal_(std=0.02)  # Fresh biases are zero and would hide mistakes.
    return model


def bundle(model: Any, tokenizer: Any = None, *, dtype: str = "float32") -> Any:
    name = type(model).__name__
    head: Any = "classify" if "Classification" in name else "causal"
    head = "seq2seq" if model.config.is_encoder_decoder else head
    card = Card(name="tiny", head=head, auto_class=AUTO_CLASSES[head], dtype=dtype)
    made = Bundle(card=card, module=model)
    made.tokenizer = tokenizer or byte_level_tokenizer()
    return made
