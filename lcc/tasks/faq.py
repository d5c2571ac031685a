"""FAQ grounding: the nearest entries stand before the model, or a person takes over.

Messages in, messages out: what is trained, what `lcc infer` asks and what `lcc serve` asks are
grounded by the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lcc.config.cards import Choice, card
from lcc.config.yaml_files import packaged_file
from lcc.core.errors import DataError
from lcc.data.bm25 import Index, Match

Message = dict[str, str]
PLACE = "{entries}"


@dataclass(frozen=True)
class FaqEntry:
    """One question of the FAQ with its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Grounded:
    """A conversation with entries before it, nearest first.

    `coverage` is the share of the question's words, weighed by rarity and stop words aside, that
    the best entry's own question holds; `handover` is what is said in the model's place where that
    is too little.
    """

    messages: list[Message]
    entries: list[FaqEntry]
    coverage: float
    handover: str | None


@card
class Grounding:
    """`file` has JSON lines with a question and an answer, found where the user stands or below
    `configs/dataset`; without it, `source` is any reader whose rows have both.

    `entries` of them are shown, each cut to `max_words`, in the system message, where `message`
    says {entries}. Below `threshold` a person takes over with the words of `handover`; 0 never
    does. The stage `handover` finds a threshold on held-out questions.
    """

    file: str | None = None
    source: Annotated[Any, Choice("readers", optional=True)] = None
    entries: Annotated[int, Field(ge=1)] = 2
    max_words: Annotated[int, Field(ge=1)] = 50
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    handover: str = "I am not sure about this. I will pass you on to a colleague."
    message: str = "You answer customers. What our FAQ says:\n{entries}"

    def __post_init__(self) -> None:
        if PLACE not in self.message:
            raise ValueError("message must say {entries}, where they shall stand")
        if self.file is None and self.source is None:
            raise ValueError("give file, JSON lines with question and answer, or source, a reader")

    @property
    def reader(self) -> Any:
        """What the entries are read with."""
        if self.file is None:
            return self.source
        is_packaged = not Path(self.file).exists() and packaged_file(f"dataset/{self.file}")
        place = {"packaged" if is_packaged else "path": self.file}
        return Choice("readers").decode({"name": "jsonl", **place})

    def ground(self, messages: Sequence[Message]) -> Grounded:
        """The conversation with what the FAQ says to its last question."""
        asked = [one["content"] for one in messages if one["role"] == "user"]
        if not asked:
            return Grounded(list(messages), [], 1.0, None)
        entries, coverage = self.nearest_entries(asked)
        text = (
            "\n".join(f"Q: {one.question}\nA: {_cut(one.answer, self.max_words)}" for one in entries)
            or "(nothing)"
        )
        own = self.message.replace(PLACE, text)
        before = [one["content"] for one in messages if one["role"] == "system"]
        system = {"role": "system", "content": "\n\n".join([*before, own])}
        turns = [one for one in messages if one["role"] != "system"]
        handover = self.handover if coverage < self.threshold else None
        return Grounded([system, *turns], entries, coverage, handover)

    def nearest_entries(self, asked: Sequence[str]) -> tuple[list[FaqEntry], float]:
        """The entries nearest to the last of these questions, and how much of it the best covers.

        A question that leans on the one before it ("And for two?") is looked up with that too, and
        the better of both counts.
        """
        tries = [asked[-1]] + ([f"{asked[-2]} {asked[-1]}"] if len(asked) > 1 else [])
        each = [self._index.nearest(text, self.entries) for text in tries if text.strip()]
        best: list[Match] = max(each, key=_coverage, default=[])
        return [self.all[one.number] for one in best], _coverage(best)

    @cached_property
    def all(self) -> list[FaqEntry]:
        """Every entry of the source, in its order."""
        entries = []
        for number, row in enumerate(self.reader.read(), 1):
            if not row.get("question") or not row.get("answer"):
                raise DataError(
                    f"task.grounding: entry {number} needs question and answer; it has {', '.join(row)}."
                )
            entries.append(FaqEntry(str(row["question"]), str(row["answer"])))
        if not entries:
            raise DataError("task.grounding: the FAQ holds no entries.")
        return entries

    @cached_property
    def _index(self) -> Index:
        questions = [one.question for one in self.all]
        texts = [f"{one.question} {one.question} {one.answer}" for one in self.all]
        return Index(texts, questions)


def _coverage(entries: Sequence[Match]) -> float:
    return entries[0].coverage if entries else 0.0


def _cut(text: str, num: int) -> str:
    words = text.split()
    return text if len(words) <= num else " ".join(words[:num]) + " …"
