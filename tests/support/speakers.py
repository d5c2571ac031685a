"""Tiny random models of several families that say many different things, and their tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lcc.config.cards import decode
from lcc.core.types import AUTO_CLASSES
from lcc.evaluation.generate import Generated, answer
from lcc.inference.engine import InProcessSession
from lcc.inference.session import AnswerStep, Opening, Request
from lcc.models.bundle import Bundle
from lcc.models.card import Card
from lcc.tasks.task import Decode

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VOCABULARY = 4 + 256
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 8, "initializer_range": 0.4, "max_position_embeddings": 256}  # fmt: skip


def tokenizer() -> Any:
    """One token a byte, so that characters come in halves."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<s>", "</s>", "<unk>", *alphabet]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def llama(**changes: Any) -> Any:
    config = transformers.LlamaConfig(**{**SIZES, **IDS, **changes})
    return made(transformers.LlamaForCausalLM, config)


def gemma3(**changes: Any) -> Any:
    window = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    config = transformers.Gemma3TextConfig(**{**SIZES, **IDS, **window, **changes})
    return made(transformers.Gemma3ForCausalLM, config)


def gpt2(**changes: Any) -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, initializer_range=0.4, **{**sizes, **IDS, **changes}
    )
    return made(transformers.GPT2LMHeadModel, config)


def t5(**changes: Any) -> Any:
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    settings = {"decoder_start_token_id": 0, "initializer_factor": 3.0, **IDS}
    config = transformers.T5Config(vocab_size=VOCABULARY, **{**sizes, **settings, **changes})
    return made(transformers.T5ForConditionalGeneration, config)


def marian(**changes: Any) -> Any:
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "init_std": 0.2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    ids = {**IDS, "decoder_start_token_id": 0, "forced_eos_token_id": 2}
    config = transformers.MarianConfig(vocab_size=VOCABULARY, **{**sizes, **ids, **changes})
    module = made(transformers.MarianMTModel, config)
    module.generation_config.update(bad_words_ids=[[0]], forced_eos_token_id=2)
    return module


def bart(**changes: Any) -> Any:
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "init_std": 0.4,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    ids = {**IDS, "decoder_start_token_id": 2}
    config = transformers.BartConfig(vocab_size=VOCABULARY, **{**sizes, **ids, **changes})
    return made(transformers.BartForConditionalGeneration, config)


def mamba() -> Any:
    """A decoder without keys and values."""
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.4, **IDS
    )
    return made(transformers.MambaForCausalLM, config)


def bert(**changes: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.4,
        **changes,
    )
    return made(transformers.BertForSequenceClassification, config)


def made(cls: Any, config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return cls(config).eval()


def save(module: Any, folder: Path) -> Path:
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def session(
    module: Any, *, slots: int = 8, context: int | None = None, prefix_mb: int = 0
) -> InProcessSession:
    head = "seq2seq" if module.config.is_encoder_decoder else "causal"
    if "Classification" in type(module).__name__:
        head = "classify"
    facts = Card(name="tiny", auto_class=AUTO_CLASSES[head], head=head)  # type: ignore[index,arg-type]
    bundle = Bundle(facts)
    bundle.tokenizer = tokenizer()
    opening = Opening(threads=1, slots=slots, context=context, prefix_mb=prefix_mb)
    return InProcessSession(bundle, module, opening)


def prompts(num: int = 11, longest: int = 14) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest, (num,), generator=generator).tolist()
    return [[1, *torch.randint(4, VOCABULARY, (n,), generator=generator).tolist()] for n in lengths]


def expected(module: Any, rows: list[list[int]], **options: Any) -> list[Generated]:
    """What evaluation's own decoder says to each row alone."""
    settings = decode(Decode, {"max_new_tokens": 20, **options})
    return [answer(module, tokenizer(), [row], decode=settings)[0] for row in rows]


def answered(
    running: InProcessSession, requests: list[Request], *, arriving: int = 100
) -> list[list[AnswerStep]]:
    """Every request's steps, in order; at each turn `arriving` more ask, if there is a slot."""
    owners: dict[int, int] = {}
    told: list[list[AnswerStep]] = [[] for _ in requests]
    waiting = list(range(len(requests)))
    while waiting or any(not steps or steps[-1].finish is None for steps in told):
        for _ in range(min(arriving, running.free_slots, len(waiting))):
            number = waiting.pop(0)
            owners[running.start(requests[number])] = number
        for step in running.step():
            told[owners[step.handle]].append(step)
    return told


def ids_of(steps: list[AnswerStep]) -> tuple[int, ...]:
    return tuple(token.id for step in steps for token in step.tokens)


def text_of(steps: list[AnswerStep]) -> str:
    return "".join(step.text for step in steps)
