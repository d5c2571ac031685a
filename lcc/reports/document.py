"""Parts of a report, whatever it is shown on: headings, sentences, tables, figures, code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["", "good", "bad", "unclear"]


@dataclass(frozen=True)
class Cell:
    """One cell: a line, a smaller line below it, and whether it is good news."""

    text: str
    small: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    """One column: its title, and whether it holds figures, prose or code."""

    title: str
    holds: Literal["figures", "prose", "code", "name"] = "figures"


@dataclass(frozen=True)
class Table:
    """Rows of cells below named columns; the first column names the row."""

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Prose:
    """A paragraph of plain text."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: list[str]
    tone: Tone = ""


@dataclass(frozen=True)
class Code:
    """Commands or settings, to be copied as they stand."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A drawing, as SVG that escapes its own text, and the sentence that says what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Figures:
    """Drawings that belong side by side where there is room."""

    figures: list[Figure]


@dataclass(frozen=True)
class Chain:
    """Names joined by arrows."""

    names: list[str]


@dataclass(frozen=True)
class Collapsible:
    """Details that open on demand."""

    title: str
    blocks: list[Block]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


Block = Table | Prose | Bullets | Code | Figures | Chain | Collapsible


@dataclass(frozen=True)
class Document:
    """The whole report."""

    title: str
    subtitle: str
    headline: str
    sections: list[Section]
