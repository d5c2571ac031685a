"""Scores are the libraries' own, and the bootstrap is the slow loop's."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score

from lcc.config.cards import decode, find_card, names
from lcc.evaluation.bootstrap import ConfidenceInterval, draws, interval, paired, verdict
from lcc.evaluation.metrics import Metric, Prediction

WORDS = {
    "en": ["the", "file", "could", "not", "be", "opened", "because", "memory", "is", "full"],
    "zh": list("无法打开文件因为内存已满请重试"),
}


def metric(name: str, **options: Any) -> Any:
    return decode(find_card("metrics", name), options)


def answers(language: str = "zh", num: int = 60, seed: int = 0) -> list[Prediction]:
    draw = random.Random(seed)
    between = "" if language == "zh" else " "
    found = []
    for i in range(num):
        reference = draw.choices(WORDS[language], k=draw.randint(1, 12))
        output = [w if draw.random() < 0.7 else draw.choice(WORDS[language]) for w in reference]
        output = output[: draw.randint(0, 12)]
        found.append(
            Prediction(
                str(i),
                {},
                between.join(reference),
                between.join(output),
                nats=draw.random() * 9,
                num_tokens=3,
                num_bytes=7,
                num_characters=5,
                counts={
                    "masked": 4.0,
                    "hits": float(draw.randint(0, 4)),
                    "unigram_hits": 1.0,
                    "pairs": 1.0,
                    "pair_hits": 0.0,
                },
            )
        )
    return found


@pytest.mark.parametrize("name", names("metrics"))
def test_every_metric_keeps_the_protocol(name: str) -> None:
    one = metric(name)
    assert isinstance(one, Metric)
    statistics = one.statistics(answers("en"), language="en")
    assert statistics.shape[0] == 60
    assert one.score(statistics).shape == (60,)
    assert np.isfinite(one.score(statistics)).all()
    assert one.signature("en")


@pytest.mark.parametrize("language, tokenize", [("zh", "zh"), ("en", "13a")])
@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_sacrebleus(language: str, tokenize: str, seed: int) -> None:
    found = answers(language, seed=seed)
    outputs, references = [a.output for a in found], [a.reference for a in found]
    expected = sacrebleu.corpus_bleu(outputs, [references], tokenize=tokenize)
    one = metric("bleu")
    statistics = one.statistics(found, language=language)
    assert one.score(statistics.sum(0)) == pytest.approx(expected.score, abs=1e-9)
    assert f"tok:{tokenize}" in one.signature(language)
    for row in statistics[:20]:
        sentence = sacrebleu.BLEU.compute_bleu(
            list(row[2:6]), list(row[6:]), int(row[0]), int(row[1]), smooth_method="exp"
        )
        assert one.score(row) == pytest.approx(sentence.score, abs=1e-9)


@pytest.mark.parametrize("word_order", [0, 2])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_chrf_is_sacrebleus(language: str, word_order: int) -> None:
    found = answers(language)
    outputs, references = [a.output for a in found], [a.reference for a in found]
    expected = sacrebleu.corpus_chrf(outputs, [references], word_order=word_order)
    one = metric("chrf", word_order=word_order)
    sums = one.statistics(found, language=language).sum(0)
    assert one.score(sums) == pytest.approx(expected.score, abs=1e-9)


def test_macro_f1_is_scikit_learns() -> None:
    draw = random.Random(1)
    found = [Prediction(str(i), {}, draw.choice("abc"), draw.choice("abcd")) for i in range(50)]
    one = metric("macro_f1")
    expected = f1_score(
        [a.reference for a in found], [a.output for a in found], average="macro", zero_division=0
    )
    assert one.score(one.statistics(found, language="").sum(0)) == pytest.approx(expected)


def test_empty_answers_stay_and_score_nothing() -> None:
    empty = [Prediction("1", {}, "打开 文件", ""), Prediction("2", {}, "打开 文件 夹 吧", None)]
    for name in ("bleu", "chrf", "meteor", "accuracy", "macro_f1"):
        one = metric(name)
        assert one.score(one.statistics(empty, language="zh").sum(0)) == 0.0


def test_meteor_matches_chinese_words_exactly_and_english_stems() -> None:
    one = metric("meteor")
    chinese = [Prediction("1", {}, "打开文件", "打开文件")]
    assert one.score(one.statistics(chinese, language="zh").sum(0)) > 90
    assert "match:exact|tok:jieba" in one.signature("zh")
    english = [Prediction("1", {}, "opening files", "opened file")]
    assert one.score(one.statistics(english, language="en").sum(0)) > 90
    assert "exact,stem" in one.signature("en")


def test_perplexity_and_bits_per_byte_and_character() -> None:
    sizes = {"num_bytes": 4, "num_characters": 2}, {"num_bytes": 2, "num_characters": 1}
    found = [
        Prediction("1", {}, "", nats=2.0, num_tokens=1, **sizes[0]),
        Prediction("2", {}, "", nats=4.0, num_tokens=2, **sizes[1]),
    ]
    for name, expected in (
        ("perplexity", math.exp(2.0)),
        ("bits_per_byte", 1 / math.log(2)),
        ("bits_per_character", 2 / math.log(2)),
    ):
        one = metric(name)
        score = one.score(one.statistics(found, language="").sum(0))
        assert score == pytest.approx(expected)


def test_the_bootstrap_is_the_slow_loops() -> None:
    one = metric("bleu")
    mine = one.statistics(answers(seed=1), language="zh")
    other = one.statistics(answers(seed=2), language="zh")
    weights = draws(60, 50, seed=5)
    assert (weights.sum(axis=1) == 60).all()
    slow = []
    for row in weights:
        chosen = np.repeat(np.arange(60), row.astype(int))
        slow.append(float(one.score(mine[chosen].sum(0)) - one.score(other[chosen].sum(0))))
    fast = paired(mine, other, one.score, weights)
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
    assert fast.value == pytest.approx(float(one.score(mine.sum(0)) - one.score(other.sum(0))))


def test_a_thousand_resamples_of_three_hundred_are_fast() -> None:
    found = answers(num=300)
    started = time.process_time()
    for name in ("bleu", "chrf"):
        one = metric(name)
        bounds = interval(one.statistics(found, language="zh"), one.score, draws(300, 1000, 0))
        assert bounds.low < bounds.value < bounds.high
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "low, high, word",
    [
        (0.1, 2.0, "gained"),
        (-1.0, 2.0, "kept"),
        (-1.9, -0.5, "kept"),
        (-3.0, -0.5, "unclear"),
        (-5.0, -2.1, "lost"),
        (-3.0, 1.0, "unclear"),
    ],
)
def test_the_verdict_follows_its_rule(low: float, high: float, word: str) -> None:
    assert verdict(ConfidenceInterval(0, low, high), 40.0, keep_ratio=0.95) == word
    turned = ConfidenceInterval(0, -high, -low)
    assert verdict(turned, 40.0, keep_ratio=0.95, higher_is_better=False) == word


def test_nothing_is_kept_of_a_score_of_zero() -> None:
    assert verdict(ConfidenceInterval(0, 0, 0), 0.0, keep_ratio=0.95) == "unclear"
    assert verdict(ConfidenceInterval(2, 1, 3), 0.0, keep_ratio=0.95) == "gained"


def test_distinct_counts_different_ngrams_of_all_answers_together() -> None:
    found = [Prediction(str(i), {}, "", text) for i, text in enumerate(["a b a", "b a c", "", "A"])]
    words, pairs = ["a", "b", "a", "b", "a", "c", "a"], ["ab", "ba", "ba", "ac"]
    for name, said in (("distinct_1", words), ("distinct_2", pairs)):
        one = metric(name)
        statistics = one.statistics(found, language="en")
        assert float(one.score(statistics.sum(axis=0))) == pytest.approx(len(set(said)) / len(said))


def test_the_interval_of_distinct_holds_its_value() -> None:
    """Counting anew in each resample would not: a resample holds fewer different answers."""
    one = metric("distinct_2")
    statistics = one.statistics(answers("en"), language="en")
    found = interval(statistics, one.score, draws(60, 400, 0))
    assert found.low < found.value < found.high


def test_repetition_is_within_one_answer() -> None:
    texts = ["a b c d a b c d", "a b c d e", "a"]
    found = [Prediction(str(i), {}, "", text) for i, text in enumerate(texts)]
    one = metric("repetition")
    assert one.statistics(found, language="en")[:, 0].tolist() == [1 - 4 / 5, 0.0, 0.0]


def test_self_bleu_is_high_where_all_say_the_same() -> None:
    one = metric("self_bleu")
    same = [Prediction(str(i), {}, "", "the file is full again") for i in range(4)]
    other = [
        Prediction(str(i), {}, "", text)
        for i, text in enumerate(["the file is full", "open a window", "nobody came today", "it rains"])
    ]
    alike, different = (float(one.score(one.statistics(a, language="en").sum(axis=0))) for a in (same, other))
    assert alike == pytest.approx(100) and different < 20


@pytest.mark.parametrize("name, kind", [("rouge_1", "rouge1"), ("rouge_l", "rougeL")])
def test_rouge_is_rouge_scores(name: str, kind: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    found = answers("en")
    scorer = RougeScorer([kind], use_stemmer=True)
    expected = [scorer.score(a.reference, a.output or "")[kind].fmeasure for a in found]
    assert metric(name).statistics(found, language="en")[:, 0].tolist() == expected
    one = Prediction("1", {}, "打开文件", "打开文夹")
    assert metric("rouge_1").statistics([one], language="zh")[0, 0] == pytest.approx(0.75)


def test_equal_answers_are_equal_as_in_squad() -> None:
    texts = [
        ("The Cat.", "cat", 1.0, 1.0),
        ("a dog runs", "the dog", 0.0, 2 / 3),
        ("", "x", 0, 0),
        ("文件夹", "文件", 0.0, 0.8),
    ]
    for output, reference, exact, shared in texts:
        one = [Prediction("1", {}, reference, output)]
        assert metric("exact_match").statistics(one, language="en")[0, 0] == exact
        assert metric("token_f1").statistics(one, language="en")[0, 0] == pytest.approx(shared)
