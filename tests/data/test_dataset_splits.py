"""Documents are never split, row order decides nothing, and held-out text is fenced off."""

from __future__ import annotations

import random

import pytest
from data_archives import pairs

from lcc.config.cards import decode
from lcc.core.errors import DataError, RecipeError
from lcc.data.dataset import SPLITS, Splits, check_disjoint
from lcc.data.local_files import Row


def _rows(num_docs: int = 12, per_doc: int = 5) -> list[Row]:
    return [{"id": f"r{n}", **row} for n, row in enumerate(pairs(num_docs, per_doc))]


def _docs(rows: list[Row]) -> set[str]:
    return {row["doc"] for row in rows}


def test_no_document_stands_in_two_splits() -> None:
    dealt, _ = Splits(validation=0.2, test=0.2).deal(_rows())
    assert all(dealt.values())
    docs = [_docs(dealt[name]) for name in SPLITS]
    assert not docs[0] & docs[1] and not docs[0] & docs[2] and not docs[1] & docs[2]


def test_row_order_decides_nothing() -> None:
    rows = _rows()
    shuffled = random.Random(3).sample(rows, len(rows))
    first, second = (Splits(validation=6, test=8, max_train=20).deal(r)[0] for r in (rows, shuffled))
    for name in SPLITS:
        assert {row["id"] for row in first[name]} == {row["id"] for row in second[name]}


def test_a_number_asked_is_a_number_given() -> None:
    dealt, left_out = Splits(validation=6, test=8, max_train=20).deal(_rows())
    assert {name: len(rows) for name, rows in dealt.items()} == {"train": 20, "validation": 6, "test": 8}
    assert sum(left_out.values()) == 60 - 34


def test_another_salt_is_another_deal() -> None:
    first, second = (Splits(test=10, salt=salt).deal(_rows())[0] for salt in ("", "b"))
    assert _docs(first["test"]) != _docs(second["test"])


def test_one_large_document_does_not_become_the_test() -> None:
    rows = _rows(20, 5)
    for row in rows[:50]:
        row["doc"] = "large"
    dealt, _ = Splits(validation=0, test=20).deal(rows)
    assert "large" not in _docs(dealt["test"])
    assert len(_docs(dealt["test"])) >= 4


@pytest.mark.parametrize("field", ["source", "target"])
def test_held_out_text_leaves_training(field: str) -> None:
    rows = _rows()
    dealt, _ = Splits(validation=5, test=5).deal(rows)
    copied = next(row for row in rows if row["id"] == dealt["train"][0]["id"])
    copied[field] = f"  {dealt['test'][0][field].upper()} !!"
    again, left_out = Splits(validation=5, test=5).deal(rows)
    assert copied["id"] not in {row["id"] for row in again["train"]}
    assert left_out["also in a held-out split (train)"] == 1
    assert check_disjoint(again, ()) > 0


def test_a_leak_is_found_and_named() -> None:
    dealt, _ = Splits(validation=5, test=5).deal(_rows())
    dealt["train"].append({**dealt["test"][0], "id": "leak"})
    with pytest.raises(DataError, match="train row 'leak' has a text that also stands in test"):
        check_disjoint(dealt, ())


def test_a_field_that_all_rows_share_may_stand_outside_the_fence() -> None:
    rows = [
        {
            "id": row["id"],
            "doc": row["doc"],
            "question": row["source"],
            "answer": row["target"],
            "instruction": "Translate.",
        }
        for row in _rows()
    ]
    all_fields, _ = Splits(validation=5, test=5).deal(rows)
    assert not all_fields["train"]
    dealt, _ = Splits(validation=5, test=5, fence=("question", "answer")).deal(rows)
    assert len(dealt["train"]) == 50


def test_splits_that_the_data_bring_are_kept() -> None:
    rows = _rows()
    for row in rows[:10]:
        row["split"] = "dev"
    for row in rows[10:20]:
        row["split"] = "test"
    dealt, _ = Splits(validation=0.05, test=0.05).deal(rows)
    assert {name: len(found) for name, found in dealt.items()} == {"train": 40, "validation": 10, "test": 10}
    assert all("split" not in row for found in dealt.values() for row in found)


@pytest.mark.parametrize("value", [1.5, -1, True, "half"])
def test_a_share_that_is_none_is_refused_with_its_key(value: object) -> None:
    with pytest.raises(RecipeError, match=r"^dataset\.splits\.test: "):
        decode(Splits, {"test": value}, "dataset.splits")
