"""Losses agree with slow, obvious references, and logits are computed at the targets only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from training_cases import Encoded, examples, model

from lcc.training.batches import collate, num_targets, num_tokens
from lcc.training.loss import logits_function, summed_loss


def capped() -> Any:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.05,
    )
    return transformers.Gemma2ForCausalLM(config)


@pytest.mark.parametrize("build", [model, capped])
def test_logits_at_the_targets_are_the_whole_forwards(build: Any) -> None:
    built = build().eval()
    batch = collate(examples(6).rows, head="causal", pad=0, device="cpu")
    with torch.no_grad():
        whole = built(**batch.inputs).logits[batch.positions]
        torch.testing.assert_close(logits_function(built, "causal")(batch), whole)
    assert len(whole) == len(batch.targets) == sum(examples(6).targets)


def test_the_prompt_is_no_target_and_padding_neither() -> None:
    rows = [Encoded([1, 5, 6, 7], [-100, -100, 6, 7]), Encoded([1, 8], [-100, 8])]
    batch = collate(rows, head="causal", pad=0, device="cpu")
    assert batch.targets.tolist() == [6, 7, 8]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert [num_targets(row, "causal") for row in rows] == [2, 1]


def test_a_pair_costs_both_its_sequences() -> None:
    pair = Encoded([4, 5, 2], [7, 8, 2])
    assert num_tokens(pair, "seq2seq") == 6 and num_targets(pair, "seq2seq") == 3
    assert num_tokens(pair, "causal") == 3


def test_label_smoothing_mixes_in_the_uniform_distribution() -> None:
    logits, targets = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 6])
    log = logits.log_softmax(-1)
    expected = sum(-0.9 * log[i, t] - 0.1 * log[i].mean() for i, t in enumerate(targets.tolist()))
    found = summed_loss(logits, targets, label_smoothing=0.1)
    assert float(found) == pytest.approx(float(expected), abs=1e-12)


def test_distillation_is_cross_entropy_and_scaled_divergence() -> None:
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 6])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    divergence = float((p * (p.log() - q.log())).sum())
    ce = float(summed_loss(student, targets))
    found = summed_loss(student, targets, teacher=teacher, weight=0.3, temperature=2.0)
    assert float(found) == pytest.approx(0.7 * ce + 0.3 * 4 * divergence, abs=1e-10)
