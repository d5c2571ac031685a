"""Debian's package descriptions: what a package does at length, and in one line (its summary)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card, digest
from lcc.data.bm25 import is_stop_word
from lcc.data.local_files import Row, normalised, short_digest
from lcc.methods.readers.packages.cache import PackageFile

STANZA = re.compile(r"\n\n+")
WORD = re.compile(r"[A-Za-z][\w+-]*\w")
GAP = "____"


@card
class Descriptions:
    """Rows `{id, doc, source, target}` from apt's list of translated descriptions.

    Of packages whose descriptions begin with the same paragraph, as those built from one source
    do, the first stands for all. List items and code of a description are left out.

    With `gaps`, rows `{id, doc, question, context, answer, answer_start}`: the question is the
    summary without one of its words, the answer that word, which the description (`context`) holds
    (cloze questions; Hermann et al., 2015). A summary that shares no word with its description,
    stop words aside, is left out.
    """

    word: ClassVar[str] = "descriptions"
    revision: ClassVar[int] = 1

    gaps: bool = False
    language: Annotated[str, Field(pattern=r"^[a-z]{2}(_[A-Z]{2})?$")] = "en"
    bytes: Annotated[int, Field(ge=0)] = 0
    licence: str = ""

    def requirements(self) -> tuple[PackageFile, ...]:
        return (self._list(),)

    def fingerprint(self) -> str:
        return digest(self._list().digest)

    def read(self) -> Iterator[Row]:
        text = self._list().verified().read_text(encoding="utf-8", errors="replace")
        seen = set()
        for stanza in STANZA.split(text):
            row = _row(stanza, f"Description-{self.language}: ")
            if row is not None and row["doc"] not in seen:
                seen.add(row["doc"])
                asked = _cloze_row(row) if self.gaps else row
                if asked is not None:
                    yield asked

    def _list(self) -> PackageFile:
        return PackageFile(f"Translation-{self.language}", self.bytes, self.licence, folder="apt")


def _row(stanza: str, mark: str) -> Row | None:
    """A package's row; None where it has no long description."""
    lines = stanza.split("\n")
    name = next((line[9:] for line in lines if line.startswith("Package: ")), None)
    at = next((i for i, line in enumerate(lines) if line.startswith(mark)), None)
    if name is None or at is None:
        return None
    paragraphs = _paragraphs(lines[at + 1 :])
    if not paragraphs:
        return None
    first = short_digest(normalised(paragraphs[0]))
    return {
        "id": name,
        "doc": first,
        "source": " ".join(paragraphs),
        "target": lines[at].removeprefix(mark).strip(),
    }


def _cloze_row(row: Row) -> Row | None:
    """The summary's word whose digest is the least, of those that stand once in it."""
    summary, context = str(row["target"]), str(row["source"])
    held = {match[0]: match.start() for match in reversed(list(WORD.finditer(context)))}
    words = [match[0].lower() for match in WORD.finditer(summary)]
    fit = [
        match
        for match in WORD.finditer(summary)
        if match[0] in held and words.count(match[0].lower()) == 1 and not is_stop_word(match[0])
    ]
    if not fit:
        return None
    gap = min(fit, key=lambda match: short_digest(str(row["id"]), match[0]))
    left = summary[: gap.start()] + GAP + summary[gap.end() :]
    return {
        "id": row["id"],
        "doc": row["doc"],
        "question": f'What is {GAP} in "{left}"?',
        "context": context,
        "answer": gap[0],
        "answer_start": held[gap[0]],
    }


def _paragraphs(lines: list[str]) -> list[str]:
    """The paragraphs of prose: a lone dot ends one, deeper lines are lists or code."""
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line == " .":
            paragraphs.append([])
        elif line.startswith(" ") and not line.startswith("  "):
            paragraphs[-1].append(line.strip())
    return [" ".join(part) for part in paragraphs if part]
