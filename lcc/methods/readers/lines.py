"""Plain text for language modelling: a row for every line, paragraph or whole document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from lcc.config.cards import card
from lcc.data.local_files import Row, TextFiles, read_text


@card
class Lines(TextFiles):
    """Rows `{text, doc}` from text files.

    A line that matches `heading` begins a document (WikiText: `^ = [^=].* = $`); without it every
    file is one document when `unit` is not `line`.
    """

    word: ClassVar[str] = "lines"
    revision: ClassVar[int] = 1

    unit: Literal["line", "paragraph", "document"] = "line"
    heading: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heading is not None:
            try:
                re.compile(self.heading)
            except re.error as error:
                raise ValueError(f"heading is no regular expression: {error}") from None

    def read_file(self, path: Path) -> Iterator[Row]:
        for name, lines in _documents(path, read_text(path, self.encoding), self.heading):
            known = self.heading is not None or self.unit != "line"
            for text in _pieces(lines, self.unit):
                if text.strip():
                    yield {"text": text, "doc": name} if known else {"text": text}


def _documents(path: Path, text: str, heading: str | None) -> Iterator[tuple[str, list[str]]]:
    name, lines = path.name, list[str]()
    for number, line in enumerate(text.split("\n"), start=1):
        if heading is not None and re.search(heading, line):
            yield name, lines
            name, lines = f"{path.name}:{number} {line.strip()}", []
        lines.append(line)
    yield name, lines


def _pieces(lines: list[str], unit: str) -> list[str]:
    if unit == "line":
        return lines
    text = "\n".join(lines)
    return [text] if unit == "document" else re.split(r"\n\s*\n", text)
