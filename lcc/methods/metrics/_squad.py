"""SQuAD's idea of equal answers and of shared words (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
from collections import Counter

from lcc.parts.cleaning import UNIT

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = re.compile(r"[^\w\s]|_")


def normal(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", PUNCTUATION.sub("", text.lower())).split())


def f1(output: str, reference: str) -> float:
    """F1 of the words of both, as bags; of Chinese, of its characters."""
    said, wanted = UNIT.findall(normal(output)), UNIT.findall(normal(reference))
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))
