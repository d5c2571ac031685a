"""Tiny models of every head, written as checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def bytes_tokenizer(template: str | None = TEMPLATE) -> Any:
    """A token per byte, and the specials of a chat."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    kind: Any = transformers.PreTrainedTokenizerFast
    tokenizer = kind(
        tokenizer_object=made,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=SPECIALS[1:],
    )
    tokenizer.chat_template = template
    return tokenizer


def chatter(
    folder: Path, *, template: str | None = TEMPLATE, context: int = 512, width: int = 32, layers: int = 2
) -> Path:
    """A decoder that says some byte after another."""
    tokenizer = bytes_tokenizer(template)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.6,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    module = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        module.lm_head.weight[-len(SPECIALS) :] = 0  # greedily it never ends by itself
    return _saved(module, tokenizer, folder)


def classifier(folder: Path) -> Path:
    tokenizer = bytes_tokenizer(None)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
        max_position_embeddings=128,
    )
    return _saved(transformers.BertForSequenceClassification(config), tokenizer, folder)


def encoder(folder: Path) -> Path:
    tokenizer = bytes_tokenizer(None)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
    )
    return _saved(transformers.BertModel(config), tokenizer, folder)


def translator(folder: Path) -> Path:
    tokenizer = bytes_tokenizer(None)
    torch.manual_seed(1)
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    return _saved(transformers.T5ForConditionalGeneration(config), tokenizer, folder)


def _saved(module: Any, tokenizer: Any, folder: Path) -> Path:
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
