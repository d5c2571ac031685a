"""Guesses at hidden tokens are counted as a slow loop counts them, document by document."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from lcc.evaluation.metrics import Prediction
from lcc.evaluation.score import guesses, most_frequent
from lcc.methods.metrics.mlm_accuracy import MaskedAccuracy, UnigramAccuracy
from lcc.methods.objectives.masked import Masked
from lcc.methods.objectives.next_sentence import NextSentence
from lcc.tasks.encode import IGNORED
from lcc.tokenization.special_tokens import Frame
from lcc.training.pretraining import STARTS_SENTENCE, STARTS_WORD, DrawnExamples, Encoded, Material, TextRows

VOCABULARY, MASK, CLS, SEP = 30, 1, 2, 3
LENGTHS = [40, 0, 7, 21, 64]  # the second document has no text


def bert() -> Any:
    torch.manual_seed(0)
    return transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    ).eval()


def drawing(objective: Any) -> DrawnExamples:
    documents = []
    for number, length in enumerate(LENGTHS):
        ids = [4 + (number + place * place) % (VOCABULARY - 4) for place in range(length)]
        flags = [STARTS_WORD | (STARTS_SENTENCE if i % 7 == 0 else 0) for i in range(length)]
        documents.append(Encoded(ids, flags))
    material = Material(
        TextRows.of(documents), 24, Frame([CLS], [SEP], [SEP], [0]), range(4, VOCABULARY), mask=MASK
    )
    return DrawnExamples(objective, material, seed=0, split="eval")


def counted(objective: Any, batch_size: int) -> list[dict[str, float]]:
    return guesses(
        bert(), drawing(objective), pad=0, frequent=9, batch_size=batch_size, advance=lambda n: None
    )


@pytest.mark.parametrize("objective", [Masked(), NextSentence()])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_counts_are_those_of_a_slow_loop(objective: Any, batch_size: int) -> None:
    model, feed = bert(), drawing(objective)
    expected = [
        {"masked": 0.0, "hits": 0.0, "unigram_hits": 0.0, "pairs": 0.0, "pair_hits": 0.0} for _ in LENGTHS
    ]
    starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    for index, (start, _) in enumerate(feed.pieces):
        owner = max(i for i, first in enumerate(starts) if first <= start and LENGTHS[i])
        one, found = feed.example(index), expected[owner]
        kinds = torch.tensor([one.kinds or [0] * len(one.input_ids)])
        with torch.no_grad():
            output = model(input_ids=torch.tensor([one.input_ids]), token_type_ids=kinds)
        for place, label in enumerate(one.labels):
            if label != IGNORED:
                found["masked"] += 1
                found["hits"] += int(output.prediction_logits[0, place].argmax() == label)
                found["unigram_hits"] += label == 9
        if one.kinds:
            found["pairs"] += 1
            found["pair_hits"] += int(output.seq_relationship_logits[0].argmax() == one.relation)
    assert counted(objective, batch_size) == expected
    assert sum(row["hits"] for row in expected) > 0


def test_the_scores_are_shares_of_what_was_hidden() -> None:
    counts = counted(Masked(), 4)
    answers = [Prediction(str(i), {}, "", counts=row) for i, row in enumerate(counts)]
    for metric, name in ((MaskedAccuracy(), "hits"), (UnigramAccuracy(), "unigram_hits")):
        statistics = metric.statistics(answers, language="")
        share = sum(row[name] for row in counts) / sum(row["masked"] for row in counts)
        assert float(metric.score(statistics.sum(axis=0))) == pytest.approx(share)
        assert float(metric.score(statistics[1])) == 0.0  # nothing was asked


def test_the_most_frequent_token_is_the_smaller_of_two_alike() -> None:
    assert most_frequent([[5, 7, 7], [5, 2]]) == 5
