"""Quips and quotations from Debian's fortune packages: short texts that people wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card, digest
from lcc.data.local_files import Row
from lcc.methods.readers.packages.archives import contents
from lcc.methods.readers.packages.cache import PackageFile, debian_package

BETWEEN = re.compile(r"^%\s*$", re.MULTILINE)
PATTERN = "*/games/fortunes/"


@card
class Fortunes:
    """Rows `{text, begin, rest, topic}`; `begin` are the first `words` words, `rest` what follows.

    Line breaks become spaces; texts that are drawn rather than written (most signs no letters) and
    those without a rest are left out.
    """

    word: ClassVar[str] = "fortunes"
    revision: ClassVar[int] = 1

    topics: Annotated[tuple[str, ...], Field(min_length=1)]
    words: Annotated[int, Field(ge=1)] = 5
    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")] = "fortunes"
    bytes: Annotated[int, Field(ge=0)] = 0
    licence: str = ""

    def requirements(self) -> tuple[PackageFile, ...]:
        return (self._package(),)

    def fingerprint(self) -> str:
        return digest(self._package().digest)

    def read(self) -> Iterator[Row]:
        wanted = [PATTERN + topic for topic in self.topics]
        for name, content in contents(self._package().verified(), wanted):
            for part in BETWEEN.split(content.decode("utf-8", errors="replace")):
                words = part.split()
                letters = sum(character.isalpha() or character == " " for character in part)
                if len(words) > self.words and letters > 0.6 * len(part):
                    begin, rest = words[: self.words], words[self.words :]
                    yield {
                        "text": " ".join(words),
                        "begin": " ".join(begin),
                        "rest": " ".join(rest),
                        "topic": PurePosixPath(name).name,
                    }

    def _package(self) -> PackageFile:
        return debian_package(self.package, self.bytes, self.licence)
