"""Short conversations written by the contributors of chatterbot-corpus, from its wheel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card, digest
from lcc.core.errors import DataError
from lcc.data.local_files import Row, normalised
from lcc.methods.readers.packages.archives import contents
from lcc.methods.readers.packages.cache import PackageFile


@card
class Chatterbot:
    """Rows `{turns, text, topic, doc}`; `text` is all turns, a line each.

    In the files of `alternatives` a question is followed by several answers to it, each of which
    makes a row; in all others speakers take turns. A document is all that begins alike.
    """

    word: ClassVar[str] = "chatterbot"
    revision: ClassVar[int] = 1

    language: str = "english"
    leave_out: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ("computers", "emotion")
    requirement: str = "chatterbot-corpus==1.3.3"
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)] = 0
    licence: str = ""

    def requirements(self) -> tuple[PackageFile, ...]:
        return (self._package(),)

    def fingerprint(self) -> str:
        return digest(self.sha256)

    def read(self) -> Iterator[Row]:
        pattern = f"*/data/{self.language}/*.yml"
        files = list(contents(self._package().verified(), (pattern,)))
        if not files:
            raise DataError(
                f"{self.requirement}: holds no language {self.language!r}; e.g. english or chinese."
            )
        for name, content in files:
            topic = PurePosixPath(name).stem
            if topic not in self.leave_out:
                for turns in _conversations(content, f"{self.requirement}: {name}"):
                    yield from self._rows(topic, turns)

    def _rows(self, topic: str, turns: list[str]) -> Iterator[Row]:
        several = [[turns[0], reply] for reply in turns[1:]]
        for said in several if topic in self.alternatives else [turns]:
            yield {
                "doc": normalised(said[0]) or said[0],
                "topic": topic,
                "turns": said,
                "text": "\n".join(said),
            }

    def _package(self) -> PackageFile:
        return PackageFile(self.requirement, bytes=self.bytes, licence=self.licence, sha256=self.sha256)


def _conversations(content: bytes, where: str) -> Iterator[list[str]]:
    """Every conversation of at least two turns; numbers and dates are read as they stand."""
    import yaml

    try:
        node: Any = yaml.load(content.decode("utf-8"), Loader=yaml.BaseLoader)
        conversations = node["conversations"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{where}: is no list of conversations ({error}).") from None
    for turns in conversations:
        said = [" ".join(turn.split()) for turn in turns] if isinstance(turns, list) else []
        if len(said) >= 2 and all(said):
            yield said
