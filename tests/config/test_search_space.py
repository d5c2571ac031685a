"""Objectives as they are typed, and as they are compared."""

from __future__ import annotations

from lcc.config.search_space import flat, typed


def test_objectives_may_be_typed_with_dots_or_as_one_mapping() -> None:
    nested = {"eval": {"quantize": {"bleu": "maximize"}}, "bytes": "minimize"}
    assert flat(nested) == {"eval.quantize.bleu": "maximize", "bytes": "minimize"}
    assert flat({"eval.quantize.bleu": "maximize"}) == {"eval.quantize.bleu": "maximize"}
    assert flat("bytes") == "bytes"  # decoding says what is wrong with it


def test_numbers_are_typed_short() -> None:
    assert typed(0.000123456789, whole=False) == "0.000123457"
    assert typed(16.0, whole=True) == "16"
