"""Batched answers are the answers one by one, and the task alone says how they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lcc.config.cards import decode
from lcc.evaluation.generate import answer, token_times
from lcc.tasks.task import Decode

WORDS = ["<pad>", "<s>", "</s>", "stop", *(f"w{i}" for i in range(28))]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokenizer() -> Any:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def causal(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        **IDS,
    )
    return transformers.LlamaForCausalLM(config).eval()


def seq2seq() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=32,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
        initializer_factor=3.0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def prompts(num: int = 11) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 9, (num,), generator=generator).tolist()
    return [[1, *torch.randint(3, 32, (n,), generator=generator).tolist()] for n in lengths]


def settings(**options: Any) -> Decode:
    return decode(Decode, {"max_new_tokens": 12, **options})


@pytest.mark.parametrize("make", [causal, seq2seq])
def test_a_batch_says_what_each_row_says_alone(make: Any) -> None:
    module, words = make(), tokenizer()
    together = answer(module, words, prompts(), decode=settings(), batch_size=4)
    alone = [answer(module, words, [p], decode=settings(), batch_size=1)[0] for p in prompts()]
    assert together == alone
    assert len({a.text for a in together}) > 3


def test_it_is_the_greedy_loop_written_out() -> None:
    module, words = causal(), tokenizer()
    found = answer(module, words, prompts(4), decode=settings(), batch_size=4)
    for prompt, one in zip(prompts(4), found, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(12):
                ids.append(int(module(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == 2:
                    break
        new = ids[len(prompt) :]
        assert one.text == words.decode(new, skip_special_tokens=True).strip()
        assert one.finished == (new[-1] == 2)


def test_sampling_defaults_of_the_checkpoint_are_put_aside_and_come_back() -> None:
    module, words = causal(), tokenizer()
    plain = answer(module, words, prompts(), decode=settings())
    module.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=9.0, top_k=3, repetition_penalty=5.0, eos_token_id=[2]
    )
    assert answer(module, words, prompts(), decode=settings()) == plain
    assert module.generation_config.repetition_penalty == 5.0


def test_an_answer_ends_before_the_stop_string() -> None:
    module, words = causal(), tokenizer()
    free = answer(module, words, prompts(), decode=settings())
    word = max((one.text for one in free), key=len).split()[2]
    cut = answer(module, words, prompts(), decode=settings(stop=[word]))
    for one, whole in zip(cut, free, strict=True):
        assert one.text == whole.text.partition(word)[0].strip()
    assert sum(one.finished for one in cut) > sum(one.finished for one in free)


def test_each_row_has_its_own_limit() -> None:
    module, words = causal(), tokenizer()
    limits = [1 + i % 4 for i in range(11)]
    found = answer(module, words, prompts(), decode=settings(), limits=limits, batch_size=11)
    free = answer(module, words, prompts(), decode=settings())
    for one, whole, limit in zip(found, free, limits, strict=True):
        assert one.num_tokens == min(limit, whole.num_tokens)
        assert whole.text.startswith(one.text)


def test_beams_answer_alike_in_any_batch() -> None:
    module, words = causal(), tokenizer()
    found = answer(module, words, prompts(3), decode=settings(num_beams=3), batch_size=3)
    alone = [answer(module, words, [p], decode=settings(num_beams=3))[0] for p in prompts(3)]
    assert found == alone


def test_speed_is_timed_over_every_token_though_the_model_would_stop() -> None:
    module = causal()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        soon = int(module(input_ids=ids).logits[0, -1].argmax())
    module.generation_config.eos_token_id = soon
    module.config.eos_token_id = soon
    times = token_times(module, ids, torch.ones_like(ids), num_new=6)
    assert len(times) == 6
    assert times == sorted(times)
