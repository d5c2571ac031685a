"""Bilingual HTML and Mallard pages: two language versions of one page, aligned block by block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

HEADINGS = frozenset(["h1", "h2", "h3", "h4", "h5", "h6", "title"])
BLOCKS = HEADINGS | frozenset(["p", "li", "dt", "dd", "th", "td", "caption", "desc", "item", "note"])
VOID = frozenset(["br", "hr", "img", "input", "link", "meta", "col", "area", "source", "wbr"])
SILENT = frozenset(["script", "style", "pre", "screen", "noscript", "head"])
SPACES = re.compile(r"\s+")


@dataclass
class Block:
    """A piece of running text: where it stands in the page, its `id` if any, and its words."""

    path: str
    id: str | None
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return SPACES.sub(" ", "".join(self.parts)).strip()


class _BlockParser(HTMLParser):
    """Collects the blocks of a page; text goes to the innermost open block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._open: list[tuple[str, Block | None]] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            self._add(" ")
            return
        block = None
        if tag in BLOCKS:
            path = "/".join(t for t, b in self._open if b is not None)
            block = Block(f"{path}/{tag}", dict(attrs).get("id"))
            self.blocks.append(block)
        self._silent += tag in SILENT
        self._open.append((tag, block))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID or not any(tag == name for name, _ in self._open):
            return
        # An element whose end tag was left out ends with the one around it.
        while self._open:
            name, _ = self._open.pop()
            self._silent -= name in SILENT
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        self._add(data)

    def _add(self, text: str) -> None:
        if not self._silent:
            block = next((b for _, b in reversed(self._open) if b is not None), None)
            if block is not None:
                block.parts.append(text)


def blocks_of(page: str) -> list[Block]:
    """The blocks of `page` that hold text, in order."""
    parser = _BlockParser()
    parser.feed(page)
    parser.close()
    return [block for block in parser.blocks if block.text]


def aligned_by_id(source: str, target: str) -> Iterator[tuple[str, str]]:
    """Texts of the blocks whose `id` stands in both pages."""
    there = {block.id: block.text for block in blocks_of(target) if block.id}
    for block in blocks_of(source):
        if block.id in there:
            yield block.text, there[block.id]


def aligned_by_structure(source: str, target: str) -> Iterator[tuple[str, str]]:
    """Texts at the same place of the sections that are built alike in both pages.

    A section runs from one heading to the next. One in which either version lacks a block is
    left out whole: nothing says which of its paragraphs still belong together.
    """
    here, there = _sections(source), _sections(target)
    if [section[0].path for section in here] != [section[0].path for section in there]:
        return
    for ours, theirs in zip(here, there, strict=True):
        if [block.path for block in ours] == [block.path for block in theirs]:
            for one, other in zip(ours, theirs, strict=True):
                yield one.text, other.text


def _sections(page: str) -> list[list[Block]]:
    sections: list[list[Block]] = []
    for block in blocks_of(page):
        if not sections or block.path.rpartition("/")[2] in HEADINGS:
            sections.append([])
        sections[-1].append(block)
    return sections
