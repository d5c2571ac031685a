"""Data cleaning: rows that may not be learned from or tested on are removed and counted."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card
from lcc.core.progress import Progress
from lcc.data.local_files import Row, normalised, text_fields

Language = Literal["en", "zh"]

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af]|[^\W_]+(?:['’-][^\W_]+)*")
MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|&[a-z]+;|&#\d+;|\[\d+:[^\]]*\]")
PLACEHOLDER = re.compile(
    r"%(?:\(\w+\))?[-#0 +']*(?:\d+\$)?[\d.*]*[a-zA-Z]\b|%%|\$?\{\{?[^{}]*\}?\}"
    r"|\$\w+|%\d+|\$\[\w+\]"
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\ufeff\ufffd]")
SPACES = re.compile(r"\s+")
BLANKS = re.compile(r"[^\S\n]+")
SHORT_UNITS = 8  # below this a length ratio says little


@card
class Cleaning:
    """Which rows are kept. Lengths count words, a Chinese or Japanese character being one.

    `languages` maps a field to the language it must be written in; `near_duplicates` is the
    share of common character 4-grams from which two texts are the same, null for off.
    """

    word: ClassVar[str] = "cleaning"
    revision: ClassVar[int] = 1

    languages: dict[str, Language] = field(default_factory=dict)
    min_words: Annotated[int, Field(ge=0)] = 1
    max_words: Annotated[int, Field(ge=1)] = 200
    max_length_ratio: Annotated[float, Field(ge=1)] | None = 5.0
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.85
    markup: Literal["keep", "drop"] = "keep"
    placeholders: Literal["any", "equal"] = "any"
    keep_lines: bool = False  # whether line breaks inside a text mean something

    def clean(self, rows: Iterable[Row], progress: Progress) -> tuple[list[Row], dict[str, int]]:
        """The rows to keep, their texts tidied, and how many each rule removed."""
        removed: Counter[str] = Counter()
        kept: list[Row] = []
        with progress.track("clean", unit="row") as bar:
            for row in rows:
                tidy = {k: self._tidied(k, v) for k, v in row.items()}
                reason = self._fault(tidy)
                if reason is None:
                    kept.append(tidy)
                else:
                    removed[reason] += 1
                bar.advance()
        kept = without_conflicts(kept, removed)
        kept = without_duplicates(kept, removed)
        if self.near_duplicates is not None:
            from lcc.data.dedup import without_near_duplicates

            before = len(kept)
            kept = without_near_duplicates(kept, self.near_duplicates, progress=progress)
            removed["near duplicate"] = before - len(kept)
        return kept, {reason: count for reason, count in removed.items() if count}

    def _tidied(self, name: str, value: object) -> object:
        if not isinstance(value, str) or name in ("id", "doc", "split"):
            return value
        text = CONTROL.sub("", unicodedata.normalize("NFC", value).replace("\r\n", "\n"))
        if not self.keep_lines:
            return SPACES.sub(" ", text).strip()
        return "\n".join(BLANKS.sub(" ", line).strip() for line in text.split("\n")).strip()

    def _fault(self, row: Row) -> str | None:
        """The first rule that `row` breaks, by the name it is counted under."""
        texts = {name: row[name] for name in text_fields(row)}
        if not texts or not all(texts.values()):
            return "empty"
        if row.get("label", "") is None or (row.get("label") == "" and "label" in row):
            return "no label"
        lengths = {name: num_words(text) for name, text in texts.items()}
        rules: list[tuple[str, Callable[[], bool]]] = [
            ("placeholders only", lambda: any(map(_only_placeholders, texts.values()))),
            ("too short", lambda: bool(lengths) and next(iter(lengths.values())) < self.min_words),
            ("too long", lambda: max(lengths.values(), default=0) > self.max_words),
            ("source equals target", lambda: _is_copy(texts)),
            ("length ratio", lambda: self._is_lopsided(lengths)),
            (
                "language",
                lambda: any(
                    not is_written_in(texts[name], language) for name, language in self.languages.items()
                ),
            ),
            ("markup", lambda: self.markup == "drop" and any(map(MARKUP.search, texts.values()))),
            (
                "placeholders differ",
                lambda: (
                    self.placeholders == "equal"
                    and len({placeholders_of(text) for text in texts.values()}) > 1
                ),
            ),
        ]
        return next((name for name, broken in rules if broken()), None)

    def _is_lopsided(self, lengths: Mapping[str, int]) -> bool:
        if self.max_length_ratio is None or not {"source", "target"} <= set(lengths):
            return False
        short, long = sorted((lengths["source"], lengths["target"]))
        return long > SHORT_UNITS and long > self.max_length_ratio * short


def num_words(text: str) -> int:
    """Words of an alphabetic script, or single characters of Chinese, Japanese and Korean."""
    return len(UNIT.findall(text))


def placeholders_of(text: str) -> tuple[str, ...]:
    """The placeholders in `text` (`%s`, `{name}`, `$1` …), sorted, since their order may differ."""
    return tuple(sorted(PLACEHOLDER.findall(text)))


def is_written_in(text: str, language: Language) -> bool:
    """Whether the letters of `text` are mostly of `language`'s script."""
    bare = MARKUP.sub(" ", PLACEHOLDER.sub(" ", text))
    han, latin = len(HAN.findall(bare)), len(LATIN.findall(bare))
    letters = sum(1 for character in bare if character.isalpha())
    if language == "zh":
        # A Chinese sentence may name English things; one character stands for two letters or so.
        return han > 0 and 3 * han >= latin and han + latin >= 0.8 * letters
    return latin > 0 and han == 0 and latin >= 0.8 * letters


def without_duplicates(rows: list[Row], removed: Counter[str]) -> list[Row]:
    """The first of every group of rows whose texts are equal, case and punctuation aside."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for row in rows:
        key = tuple(normalised(row[name]) for name in text_fields(row))
        if key in seen:
            removed["duplicate"] += 1
        else:
            seen.add(key)
            kept.append(row)
    return kept


def without_conflicts(rows: list[Row], removed: Counter[str]) -> list[Row]:
    """No rows whose equal texts carry different labels: nobody can learn both."""
    labels: dict[tuple[str, ...], set[str]] = {}
    if not any("label" in row for row in rows):
        return rows
    keys = [tuple(normalised(row[name]) for name in text_fields(row)) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        labels.setdefault(key, set()).add(str(row.get("label")))
    kept = [row for key, row in zip(keys, rows, strict=True) if len(labels[key]) == 1]
    removed["conflicting labels"] += len(rows) - len(kept)
    return kept


def _only_placeholders(text: str) -> bool:
    return not UNIT.search(MARKUP.sub(" ", PLACEHOLDER.sub(" ", text)))


def _is_copy(texts: Mapping[str, str]) -> bool:
    return "source" in texts and normalised(texts["source"]) == normalised(texts.get("target", ""))
