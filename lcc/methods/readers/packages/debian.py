"""Bilingual pages of Debian packages: two language versions of an HTML or Mallard page, aligned by block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card, digest
from lcc.data.local_files import Row
from lcc.data.packages import Requirement, contents, require
from lcc.methods.readers.packages.gettext import catalogue_pairs

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


class _Blocks(HTMLParser):
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
    parser = _Blocks()
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


# Human translations in Debian packages: gettext catalogues, and manuals in two languages.

Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]


@card
class Catalogues:
    """A package whose .mo files are read; a document is one catalogue."""

    package: Package
    patterns: tuple[str, ...] = ("*/zh_CN/LC_MESSAGES/*.mo",)
    bytes: Annotated[int, Field(ge=0)] = 0
    licence: str = ""


@card
class Manual:
    """A manual in two languages; a document is one page.

    `source_pages` and `target_pages` are paths with `{page}` where the two agree; blocks are
    matched by their HTML `id`, or by the structure of the page where there are no ids.
    """

    source_package: Package
    target_package: Package
    source_pages: Annotated[str, Field(pattern=r"\{page\}")]
    target_pages: Annotated[str, Field(pattern=r"\{page\}")]
    align: Literal["id", "structure"] = "id"
    bytes: Annotated[int, Field(ge=0)] = 0
    licence: str = ""


@card
class Debian:
    """Rows `{source, target, doc}`. Versions are those of the Debian release at hand."""

    word: ClassVar[str] = "debian"
    revision: ClassVar[int] = 1

    catalogues: tuple[Catalogues, ...] = ()
    manuals: tuple[Manual, ...] = ()

    def requirements(self) -> tuple[Requirement, ...]:
        needed = {one.package: _needed(one.package, one.bytes, one.licence) for one in self.catalogues}
        for manual in self.manuals:
            first, second = manual.source_package, manual.target_package
            # The bytes of a manual are those of both its packages, told once.
            needed[first] = _needed(first, manual.bytes, manual.licence)
            needed.setdefault(second, _needed(second, 0, manual.licence))
        return tuple(needed.values())

    def fingerprint(self) -> str:
        return digest([(one.requirement, one.digest) for one in self.requirements()])

    def read(self) -> Iterator[Row]:
        for manual in self.manuals:
            yield from _manual_rows(manual)
        for one in self.catalogues:
            archive = require(_needed(one.package, one.bytes, one.licence))
            for name, content in contents(archive, one.patterns):
                for source, target in catalogue_pairs(content, where=f"{archive.name}:{name}"):
                    yield {"doc": f"{one.package}/{Path(name).stem}", "source": source, "target": target}


def _manual_rows(manual: Manual) -> Iterator[Row]:
    sources = dict(_pages(manual.source_package, manual.source_pages))
    align = aligned_by_id if manual.align == "id" else aligned_by_structure
    for page, target in sorted(_pages(manual.target_package, manual.target_pages)):
        if page in sources:
            for source_text, target_text in align(sources[page], target):
                yield {"doc": f"{manual.source_package}/{page}", "source": source_text, "target": target_text}


def _pages(package: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Page name and content of every page of a manual."""
    named = re.compile(re.escape(pattern).replace(re.escape("{page}"), "(?P<page>.+)"))
    archive = require(_needed(package, 0, ""))
    for name, content in contents(archive, (pattern.replace("{page}", "*"),)):
        match = named.fullmatch(name)
        if match is not None:
            yield match["page"], content.decode("utf-8", errors="replace")


def _needed(package: str, num_bytes: int, licence: str) -> Requirement:
    return Requirement(name=package, requirement=package, bytes=num_bytes, licence=licence, debian=True)
