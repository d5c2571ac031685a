"""Texts packed in one row give the losses and gradients that they give alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from training_cases import Encoded, examples, model, stepper

from lcc.core.errors import RecipeError
from lcc.training.batches import EncodedExamples, collate, micro_batches, pack, packed_size
from lcc.training.distillation import Distillation, HiddenMatch, states_function
from lcc.training.loss import logits_function
from lcc.training.optim import checkpoint_blocks
from lcc.training.packing import allow_packing, laid_out, require_packable

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip


def gemma3() -> Any:
    config = transformers.Gemma3TextConfig(
        **SMALL,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


def qwen3() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8))


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


FAMILIES = [model, gemma3, qwen3, gpt2]


def built(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build()


def gradients(trained: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for p in trained.parameters()]


def alone(trained: Any, data: EncodedExamples) -> tuple[float, list[torch.Tensor]]:
    """Every text in a forward of its own, by transformers' usual attention."""
    loss = stepper(trained, micro_tokens=1).accumulate(data, range(len(data)), step=0)
    return loss, gradients(trained)


@pytest.mark.parametrize("build", FAMILIES)
def test_packed_texts_give_the_loss_and_gradients_of_texts_alone(build: Any) -> None:
    trained, data = built(build), examples(16)
    loss, expected = alone(trained, data)
    allow_packing(trained)
    together = stepper(trained, micro_tokens=10_000, packing=True)
    assert together.accumulate(data, range(16), step=0) == pytest.approx(loss, abs=1e-5)
    for got, wanted in zip(gradients(trained), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_checkpointed_layers_pack_as_well() -> None:
    trained, data = model(), examples(16)
    loss, expected = alone(trained, data)
    allow_packing(trained)
    checkpoint_blocks(trained)
    together = stepper(trained, micro_tokens=10_000, packing=True)
    assert together.accumulate(data, range(16), step=0) == pytest.approx(loss, abs=1e-5)
    for got, wanted in zip(gradients(trained), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("compared", ["logits", "states"])
def test_a_packed_student_is_shown_what_a_packed_teacher_says(compared: str) -> None:
    student, teacher, data = model(), model(width=32).eval(), examples(12)
    states = [states_function(m, "causal") for m in (student, teacher)]
    maps = {i: torch.randn(16, 32) for i in (1, 2)}
    hidden = HiddenMatch(*states, 0.5, maps) if compared == "states" else None
    lesson = Distillation(logits_function(teacher, "causal"), 0.7, 2.0, hidden=hidden)
    how = {"micro_tokens": 10_000, "distillation": lesson}
    padded = stepper(student, **how).accumulate(data, range(12), step=0)
    expected = gradients(student)
    allow_packing(student)
    allow_packing(teacher)
    together = stepper(student, packing=True, **how).accumulate(data, range(12), step=0)
    assert together == pytest.approx(padded, abs=1e-5)
    for got, wanted in zip(gradients(student), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_a_text_does_not_see_its_neighbours() -> None:
    trained = model().eval()
    allow_packing(trained)
    rows = examples(4).rows

    def states(first: int) -> torch.Tensor:
        changed = Encoded([first] * len(rows[0].input_ids), rows[0].labels)
        batch = pack([changed, *rows[1:]], device="cpu")
        with torch.no_grad(), laid_out(batch.lengths):
            return trained.model(**batch.inputs, use_cache=False).last_hidden_state[0]

    before, after, length = states(5), states(9), len(rows[0].input_ids)
    assert not torch.allclose(before[:length], after[:length])
    assert torch.equal(before[length:], after[length:])


def test_padded_rows_are_read_as_ever() -> None:
    trained = gemma3().eval()
    batch = collate(examples(6).rows, head="causal", pad=0, device="cpu")
    with torch.no_grad():
        expected = trained(**batch.inputs).logits
        allow_packing(trained)
        assert torch.equal(trained(**batch.inputs).logits, expected)


def test_positions_begin_again_and_the_last_token_of_a_text_predicts_nothing() -> None:
    rows = [Encoded([1, 5, 6], [-100, 5, 6]), Encoded([1, 8], [-100, 8])]
    batch = pack(rows, device="cpu")
    assert batch.inputs["input_ids"].tolist() == [[1, 5, 6, 1, 8]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch.targets.tolist() == [5, 6, 8] and batch.lengths == (3, 2)
    assert batch.positions is not None
    assert batch.positions.tolist() == [[True, True, False, True, False]]


def test_a_packed_piece_holds_as_many_tokens_as_it_may() -> None:
    lengths = [3, 9, 4, 7, 5]
    pieces = micro_batches(range(5), lengths, micro_tokens=16, size=packed_size)
    assert pieces == [[1, 3], [4, 2, 0]]


def test_families_that_cannot_are_refused() -> None:
    torch.manual_seed(0)
    bloom = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)
    )
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1)
    )
    for refused in (bloom, mamba):
        kind = refused.config.model_type
        with pytest.raises(RecipeError, match=f"'{kind}' cannot keep packed texts apart"):
            allow_packing(refused)


@pytest.mark.parametrize("head", ["seq2seq", "classify"])
def test_other_heads_are_refused(head: Any) -> None:
    with pytest.raises(RecipeError, match=f"packing: a task with the head '{head}' needs"):
        require_packable(head)
