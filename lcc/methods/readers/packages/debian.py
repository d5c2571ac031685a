"""Human translations in Debian packages: gettext catalogues, and manuals in two languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card, digest
from lcc.data.local_files import Row
from lcc.methods.readers.packages.archives import contents
from lcc.methods.readers.packages.bilingual_html import aligned_by_id, aligned_by_structure
from lcc.methods.readers.packages.cache import PackageFile, debian_package
from lcc.methods.readers.packages.gettext import catalogue_pairs

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

    def requirements(self) -> tuple[PackageFile, ...]:
        needed = {one.package: debian_package(one.package, one.bytes, one.licence) for one in self.catalogues}
        for manual in self.manuals:
            first, second = manual.source_package, manual.target_package
            # The bytes of a manual are those of both its packages, told once.
            needed[first] = debian_package(first, manual.bytes, manual.licence)
            needed.setdefault(second, debian_package(second, 0, manual.licence))
        return tuple(needed.values())

    def fingerprint(self) -> str:
        return digest([(one.requirement, one.digest) for one in self.requirements()])

    def read(self) -> Iterator[Row]:
        for manual in self.manuals:
            yield from _manual_rows(manual)
        for one in self.catalogues:
            archive = debian_package(one.package).verified()
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
    archive = debian_package(package).verified()
    for name, content in contents(archive, (pattern.replace("{page}", "*"),)):
        match = named.fullmatch(name)
        if match is not None:
            yield match["page"], content.decode("utf-8", errors="replace")
