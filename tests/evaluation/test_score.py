"""Likelihoods are those of a plain loop over each text alone, and windows predict all once."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
import transformers
from test_generate import causal, prompts, seq2seq, tokenizer

from lcc.core import signals
from lcc.core.errors import PreemptedError
from lcc.evaluation.score import Span, choices, context_length, nats, token_windows


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.4,
        eos_token_id=2,
        bos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def slow_nats(module: Any, span: Span) -> float:
    with torch.no_grad():
        if span.prompt is not None:
            before = torch.tensor([[0, *span.ids[:-1]]])
            logits = module(input_ids=torch.tensor([span.prompt]), decoder_input_ids=before).logits
            logs = logits[0].log_softmax(-1)
        else:
            logits = module(torch.tensor([span.ids])).logits[0]
            logs = torch.cat([logits[:1] * 0, logits.log_softmax(-1)[:-1]])
    return -sum(float(logs[i, span.ids[i]]) for i in range(span.start, len(span.ids)))


@pytest.mark.parametrize("make", [causal, gpt2])
def test_padded_batches_score_like_each_text_alone(make: Any) -> None:
    module = make()
    spans = [Span(ids, 1 + i % 3 if len(ids) > 3 else 1) for i, ids in enumerate(prompts())]
    found = nats(module, tokenizer(), spans, batch_size=4)
    assert found == pytest.approx([slow_nats(module, span) for span in spans], rel=1e-4)


def test_scoring_stops_within_a_batch_of_being_asked() -> None:
    spans = [Span(ids, 1) for ids in prompts()]
    done: list[int] = []

    def asked(num: int) -> None:
        done.append(num)
        signal.raise_signal(signal.SIGTERM)

    stopped = pytest.raises(PreemptedError, match=r"score: asked to stop \(SIGTERM\)")
    with signals.watched(), stopped:
        nats(causal(), tokenizer(), spans, batch_size=2, advance=asked)
    assert len(done) == 1


def test_encoder_decoders_score_their_targets() -> None:
    module = seq2seq()
    spans = [Span(target, 0, source) for target, source in zip(prompts(), prompts()[::-1], strict=True)]
    found = nats(module, tokenizer(), spans, batch_size=4)
    assert found == pytest.approx([slow_nats(module, span) for span in spans], rel=1e-4)


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 33])
def test_windows_predict_every_token_once(bos: int | None, length: int) -> None:
    text = list(range(100, 100 + length))
    found = list(token_windows(text, window=8, stride=3, bos=bos))
    predicted = [token for span in found for token in span.ids[span.start :]]
    assert predicted == (text if bos else text[1:])
    assert all(len(span.ids) <= 8 for span in found)
    assert all(span.start >= 4 for span in found[1:])
    assert all(span.ids[0] == bos for span in found if bos)


def test_a_classifier_chooses_alike_in_any_batch() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=3,
        initializer_range=0.5,
    )
    module = transformers.BertForSequenceClassification(config).eval()
    alone = [choices(module, tokenizer(), [row])[0] for row in prompts()]
    assert choices(module, tokenizer(), prompts(), batch_size=4) == alone
    assert context_length(module) == 512
