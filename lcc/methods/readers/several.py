"""Rows of several readers, one after another: a dataset of more than one source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import Choice, card, digest
from lcc.data.local_files import Requirement, Row


@card
class Several:
    """Each row has its reader's fields; where `keep` names some, these alone."""

    word: ClassVar[str] = "several"
    revision: ClassVar[int] = 1

    sources: Annotated[tuple[Annotated[Any, Choice("readers")], ...], Field(min_length=1)]
    keep: tuple[str, ...] = ()

    def requirements(self) -> tuple[Requirement, ...]:
        return tuple(dict.fromkeys(one for s in self.sources for one in s.requirements()))

    def fingerprint(self) -> str:
        return digest([source.fingerprint() for source in self.sources])

    def read(self) -> Iterator[Row]:
        for source in self.sources:
            for row in source.read():
                if not self.keep:
                    yield row
                else:
                    yield {k: v for k, v in row.items() if k in self.keep or k in ("id", "doc")}
