"""Swept words as ranges: lists, steps and intervals, written in Hydra's override grammar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lcc.core.errors import RecipeError
from lcc.core.words import parsed, unreadable


@dataclass(frozen=True)
class Listed:
    """`a,b`, `choice(a,b)` or `range(1,9,2)`: values as they are typed; a range also has a step."""

    head: str  # the word before its `=`
    values: tuple[str, ...]
    step: float | None = None


@dataclass(frozen=True)
class Interval:
    """`interval(0,1)`, `int(interval(1,9))` or `tag(log,interval(1e-5,1e-2))`, bounds included."""

    head: str
    low: float
    high: float
    whole: bool = False
    log: bool = False


Range = Listed | Interval


def ranges(words: Sequence[str]) -> list[Range]:
    """The words that stand for several values; raises RecipeError for what is no range."""
    found = [_range(word) for word in words]
    heads = [r.head.lstrip("+") for r in found if r is not None]
    twice = next((head for head in heads if heads.count(head) > 1), None)
    if twice is not None:
        raise RecipeError(f"'{twice}' is swept twice; write all its values in one word.")
    return [r for r in found if r is not None]


def chosen_words(words: Sequence[str], chosen: dict[str, str]) -> list[str]:
    """`words` with every swept one replaced by the value chosen for its head."""
    heads = [word.partition("=")[0] for word in words]
    swept = {r.head for r in ranges(words)}
    return [f"{head}={chosen[head]}" if head in swept else word
            for head, word in zip(heads, words, strict=True)]  # fmt: skip


def _range(word: str) -> Range | None:
    override = parsed(word)
    if not override.is_sweep_override():
        return None
    head, value = word.partition("=")[0], override.value()
    if getattr(value, "shuffle", False):
        raise RecipeError(f"'{word}': shuffle would give every start another order; take "
                          "sampler=random in its place.")  # fmt: skip
    if override.is_interval_sweep():
        return _interval(word, head, value)
    from hydra.errors import HydraException

    try:
        values = tuple(override.sweep_string_iterator())
    except HydraException:
        raise unreadable(word) from None
    if not values:
        raise RecipeError(f"'{word}' stands for no value at all; give at least one.")
    if len(values) == 1:
        return Listed(head, values)
    is_range = override.is_range_sweep()
    return Listed(head, values, step=abs(float(value.step)) if is_range else None)  # type: ignore[union-attr]


def _interval(word: str, head: str, value: Any) -> Interval:
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    low, high, log = float(value.start), float(value.end), "log" in value.tags
    unknown = sorted(value.tags - {"log"})
    if unknown:
        raise RecipeError(f"'{word}': the tag {unknown[0]!r} means nothing here; only log does.")
    if not low < high:
        raise RecipeError(f"'{word}': an interval goes from a lower to a higher number.")
    if log and low <= 0:
        raise RecipeError(f"'{word}': a logarithmic interval starts above zero.")
    return Interval(head, low, high, whole=whole, log=log)
