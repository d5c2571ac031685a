"""Questions and their answers from FAQs in Debian packages: DocBook's HTML, and Perl's POD."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card, digest
from lcc.data.local_files import Row, normalised, short_digest
from lcc.methods.readers.packages.archives import contents
from lcc.methods.readers.packages.cache import PackageFile, debian_package

SECTION = re.compile(
    r'<h2 class="title"[^>]*>(.*?)</h2>(.*?)(?=<h2 class="title"|<div class="nav)', re.DOTALL
)
PARAGRAPH = re.compile(r"<p>(.*?)</p>", re.DOTALL)
TAG = re.compile(r"<[^>]+>")
NUMBER = re.compile(r"^[\d.]+\s*")
HEADING = re.compile(r"^=head2 +", re.MULTILINE)
NAMED = re.compile(r"[A-Z]<([^<>|]*\|)?([^<>]*)>")
LONG = re.compile(r"[A-Z]<{2,}\s(.*?)\s>{2,}", re.DOTALL)

Entry = tuple[str, list[str]]  # a question, and the paragraphs of its answer


@card
class Pages:
    """Files of one package, by a pattern of `.html` or `.pod` names; a document is one file."""

    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    pattern: str
    bytes: Annotated[int, Field(ge=0)] = 0
    licence: str = ""


@card
class Faq:
    """Rows `{question, answer, text, turns, doc}`; the answer is the first `paragraphs` of prose.

    With `passages`, `context` holds the beginnings of that many answers of the same document, the
    right one among them at a place that its hash decides, a line each, and the answer is that
    line; questions whose document has fewer are left out. Without, a question is a document of its
    own; `shortened` asks it as people type: some of its words that are no stop words.
    """

    word: ClassVar[str] = "faq"
    revision: ClassVar[int] = 1

    pages: Annotated[tuple[Pages, ...], Field(min_length=1)]
    paragraphs: Annotated[int, Field(ge=1)] = 1
    min_words: Annotated[int, Field(ge=1)] = 1
    max_words: Annotated[int, Field(ge=1)] = 120
    passages: Annotated[int, Field(ge=0)] = 0
    shortened: bool = False
    draws: Annotated[int, Field(ge=1)] = 1  # how often each question is asked, of other passages

    def requirements(self) -> tuple[PackageFile, ...]:
        return tuple(map(_package_file, self.pages))

    def fingerprint(self) -> str:
        return digest([(one.requirement, one.digest) for one in self.requirements()])

    def read(self) -> Iterator[Row]:
        documents: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for pages in self.pages:
            for name, content in contents(_package_file(pages).verified(), (pages.pattern,)):
                doc = f"{pages.package}/{PurePosixPath(name).stem}"
                for question, paragraphs in _entries(name, content):
                    answer = " ".join(paragraphs[: self.paragraphs])
                    if paragraphs and self.min_words <= len(answer.split()) <= self.max_words:
                        documents[doc].append((question, answer))
        for doc, pairs in documents.items():
            yield from self._rows(doc, pairs)

    def _rows(self, doc: str, pairs: Sequence[tuple[str, str]]) -> Iterator[Row]:
        for question, answer in pairs:
            row = {"doc": doc, "question": question, "answer": answer}
            if not self.passages:
                asked = _shortened(question) if self.shortened else question
                yield {
                    **row,
                    "doc": normalised(question),
                    "question": asked,
                    "text": f"{asked}\n{answer}",
                    "turns": [asked, answer],
                }
            elif len(pairs) >= self.passages:
                others = [text for _, text in pairs if text != answer]
                for draw in range(self.draws):
                    yield {
                        **row,
                        "context": _mixed(question, answer, others, self.passages, draw),
                        "id": short_digest(doc, question, str(draw)),
                    }


def _mixed(question: str, answer: str, others: Sequence[str], num: int, draw: int) -> str:
    """The answer among others, chosen and placed by hashes, so that nothing is left to chance."""
    ranked = sorted(others, key=lambda text: short_digest(question, str(draw), text))
    chosen = [answer, *ranked[: num - 1]]
    return "\n".join(sorted(chosen, key=lambda text: short_digest(text, question, str(draw))))


def _shortened(question: str) -> str:
    """Two in three of the words that say something, chosen by their hashes; at least two."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = [w for w in re.findall(r"[\w.'-]+", question) if w.lower() not in ENGLISH_STOP_WORDS]
    ranked = sorted(range(len(words)), key=lambda i: short_digest(question, words[i], str(i)))
    kept = sorted(ranked[: max(2, round(2 * len(words) / 3))])
    return " ".join(words[i] for i in kept).lower() or question


def _entries(name: str, content: bytes) -> Iterator[Entry]:
    text = content.decode("utf-8", errors="replace")
    yield from _pod(text) if name.endswith(".pod") else _docbook(text)


def _docbook(text: str) -> Iterator[Entry]:
    for title, body in SECTION.findall(text):
        question = NUMBER.sub("", _plain(title))
        if question.endswith("?"):
            yield question, [p for p in map(_plain, PARAGRAPH.findall(body)) if p]


def _plain(markup: str) -> str:
    return " ".join(html.unescape(TAG.sub("", markup)).split())


def _pod(text: str) -> Iterator[Entry]:
    for section in HEADING.split(text)[1:]:
        title, _, body = section.partition("\n")
        body = re.split(r"^=head1", body, maxsplit=1, flags=re.MULTILINE)[0]
        blocks = [b.strip("\n") for b in re.split(r"\n[ \t]*\n", body) if b.strip()]
        prose = [b for b in blocks if not b[:1].isspace() and not b.lstrip().startswith("=")]
        paragraphs = [" ".join(_named(block).split()) for block in prose]
        question = " ".join(_named(title).split())
        if question.endswith("?"):
            yield question, [p for p in paragraphs if p and not p.startswith("(contributed by")]


def _named(text: str) -> str:
    """POD without its marks: C<code>, L<text|target>."""
    text = LONG.sub(r"\1", text)
    return NAMED.sub(lambda match: (match[1] or match[2]).rstrip("|"), text)


def _package_file(pages: Pages) -> PackageFile:
    return debian_package(pages.package, pages.bytes, pages.licence)
