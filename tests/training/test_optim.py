"""Who is decayed, how the learning rate moves, what dropout means."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers
from training_cases import model

from lcc.training.optim import parameter_groups, schedule_of, set_dropout


def test_vectors_are_not_decayed() -> None:
    groups = parameter_groups(model(), 0.1)
    by_decay = {
        decay: [p for g in groups if g["weight_decay"] == decay for p in g["params"]] for decay in (0.1, 0.0)
    }
    assert all(p.ndim >= 2 for p in by_decay[0.1]) and by_decay[0.1]
    assert all(p.ndim < 2 for p in by_decay[0.0]) and by_decay[0.0]
    assert sum(len(g["params"]) for g in groups) == len(list(model().parameters()))


def hidden_names(built: Any) -> set[str]:
    hidden = {id(p) for g in parameter_groups(built, 0.1) if g["is_hidden"] for p in g["params"]}
    return {n for n, p in built.named_parameters() if id(p) in hidden}


def test_hidden_matrices_are_neither_embeddings_nor_heads_nor_vectors() -> None:
    linear = "self_attn.{}_proj self_attn.{}_proj self_attn.{}_proj self_attn.{}_proj".format
    inside = [*linear(*"qkvo").split(), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert hidden_names(model()) == {f"model.layers.{i}.{name}.weight" for i in range(2) for name in inside}


def test_a_classifiers_head_and_t5s_biases_are_not_hidden() -> None:
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=20, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
    )
    assert all(".layer.0." in n or "pooler" in n for n in hidden_names(bert))
    assert len(hidden_names(bert)) == 7
    assert all(".block.0." in n and "bias" not in n for n in hidden_names(t5))
    assert len(hidden_names(t5)) == 16


def test_an_adapters_factors_are_hidden() -> None:
    adapted = peft.get_peft_model(model(), peft.LoraConfig(r=2, target_modules="all-linear"))
    assert all("lora_" in n for n in hidden_names(adapted)) and len(hidden_names(adapted)) == 28


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_the_rate_warms_up_and_then_follows_its_schedule(name: str, last: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = schedule_of(name, optimizer, num_steps=20, warmup_ratio=0.2)  # type: ignore[arg-type]
    rates: list[float] = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert schedule.get_last_lr()[0] == pytest.approx(last, abs=1e-9)
    assert sorted(rates[3:], reverse=True) == rates[3:]
    assert min(rates) > 0 and rates.count(1.0) == (1 if last == 0 else 17)


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = schedule_of("linear", optimizer, num_steps=4, warmup_ratio=0.0)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_dropout_reaches_attention_too() -> None:
    built = model(dropout=0.0)
    set_dropout(built, 0.25)
    assert {layer.self_attn.attention_dropout for layer in built.model.layers} == {0.25}


def test_dropout_reaches_what_t5_hands_to_a_function() -> None:
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, dropout_rate=0.1
    )
    built = transformers.T5ForConditionalGeneration(config)
    set_dropout(built, 0.0)
    ids = torch.arange(3, 9).view(1, 6)
    built.train()
    first, again = (built(input_ids=ids, decoder_input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, again)
