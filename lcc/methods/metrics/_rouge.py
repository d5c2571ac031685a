"""ROUGE by the rouge-score library, once for its three cards."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from lcc.methods.metrics._overlap import Words
from lcc.parts.metrics import Answer

STEMMED = ("", "en")


def rouge(kind: str, answers: Sequence[Answer], language: str) -> list[float]:
    """F1 of every answer; `kind` as rouge-score calls it: rouge1, rouge2, rougeL."""
    from rouge_score.rouge_scorer import RougeScorer

    if language in STEMMED:
        scorer = RougeScorer([kind], use_stemmer=True)
    else:
        scorer = RougeScorer([kind], tokenizer=Words())
    return [scorer.score(one.reference, one.output or "")[kind].fmeasure for one in answers]


def signature_of(name: str, language: str) -> str:
    how = "words,porter" if language in STEMMED else "words,characters of Chinese"
    return f"{name}|f1|mean over samples|tok:{how}|rouge-score:{version('rouge-score')}"
