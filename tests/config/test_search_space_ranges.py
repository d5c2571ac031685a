"""Swept words: lists, steps and intervals in Hydra's grammar, and what is refused of them."""

from __future__ import annotations

import pytest

from lcc.config.search_space import Interval, Listed, chosen_words, ranges
from lcc.core.errors import RecipeError


def test_lists_steps_and_intervals_are_told_apart() -> None:
    words = [
        "plan=w8,nf4",
        "+seed=range(1,7,2)",
        "a.lr=tag(log,interval(1e-5,1e-2))",
        "a.rank=int(interval(4,64))",
        "plan.quantize.bits=choice(4,8)",
        "model=tiny_llama",
        "b=choice(one)",
        "~task",
    ]
    assert ranges(words) == [
        Listed("plan", ("w8", "nf4")),
        Listed("+seed", ("1", "3", "5"), step=2.0),
        Interval("a.lr", 1e-5, 1e-2, log=True),
        Interval("a.rank", 4, 64, whole=True),
        Listed("plan.quantize.bits", ("4", "8")),
        Listed("b", ("one",)),
    ]


def test_a_choice_takes_the_place_of_its_word_and_no_other() -> None:
    words = ["+recipe=tiny", "seed=1,2", "a.lr=interval(0,1)"]
    assert chosen_words(words, {"seed": "2", "a.lr": "0.25"}) == ["+recipe=tiny", "seed=2", "a.lr=0.25"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["seed=1,2", "seed=3,4"], "'seed' is swept twice; write all its values in one word."),
        (
            ["seed=shuffle(range(1,9))"],
            "'seed=shuffle(range(1,9))': shuffle would give every start "
            "another order; take sampler=random in its place.",
        ),
        (["seed=range(3,3)"], "'seed=range(3,3)' stands for no value at all; give at least one."),
        (["lr=interval(1,1)"], "'lr=interval(1,1)': an interval goes from a lower to a higher number."),
        (
            ["lr=tag(log,interval(0,1))"],
            "'lr=tag(log,interval(0,1))': a logarithmic interval starts above zero.",
        ),
        (
            ["lr=tag(big,interval(0,1))"],
            "'lr=tag(big,interval(0,1))': the tag 'big' means nothing here; only log does.",
        ),
    ],
)
def test_a_range_that_cannot_be_meant_is_told_in_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        ranges(words)
    assert str(caught.value) == sentence
