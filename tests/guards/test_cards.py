"""Every card obeys its shelf: a word of its own, a sentence, a revision, frozen."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from lcc.config.cards import SHELVES, STAGES, find_card, name_of, names

CARDS = [(shelf, name) for shelf in SHELVES for name in names(shelf)]


@pytest.mark.parametrize("shelf, name", CARDS)
def test_a_card_is_a_page(shelf: str, name: str) -> None:
    cls = find_card(shelf, name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert importlib.import_module(cls.__module__).__doc__
    assert isinstance(cls.revision, int)
    # Keys hold the word: it is written in the class, so that moving a file makes nothing anew.
    assert vars(cls)["word"] == name == name_of(cls)


@pytest.mark.parametrize("name", names(STAGES))
def test_a_stage_keeps_the_contract(name: str) -> None:
    cls = find_card(STAGES, name)
    assert set(cls.reads) <= {"task", "data", "seed", "device", "dtype"}
    assert set(cls.accepts) <= {"dense", "packed", "adapter", "adapted"}
    assert isinstance(cls.changes_model, bool)
    assert callable(cls.run)


@pytest.mark.parametrize("shelf", [s for s in SHELVES if s != STAGES])
def test_the_cards_of_a_shelf_share_their_working_method(shelf: str) -> None:
    methods = [
        {n for n in dir(find_card(shelf, c)) if callable(getattr(find_card(shelf, c), n)) and n[0] != "_"}
        for c in names(shelf)
    ]
    assert set.intersection(*methods), f"{shelf}: no method common to {names(shelf)}"
