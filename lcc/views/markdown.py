"""The report as Markdown, for terminals, pull requests and mail; every text escaped."""

from __future__ import annotations

import re
from functools import singledispatch

from lcc.views.document import (
    Bullets,
    Cell,
    Chain,
    Code,
    Document,
    Figures,
    Fold,
    Prose,
    Section,
    Table,
)


def render(document: Document) -> str:
    """The whole report as one Markdown text."""
    head = f"# {_escaped(document.title)}\n\n{_escaped(document.subtitle)}\n\n" \
           f"**{_escaped(document.headline)}**\n"  # fmt: skip
    return "\n".join([head, *map(_section, document.sections)])


def _section(section: Section) -> str:
    return "\n".join([f"## {_escaped(section.title)}\n", *map(_block, section.blocks)])


@singledispatch
def _block(block: object) -> str:
    raise AssertionError(f"no way to write {block!r}")


@_block.register
def _(block: Prose) -> str:
    return f"{_escaped(block.text)}\n"


@_block.register
def _(block: Bullets) -> str:
    mark = "⚠ " if block.tone == "bad" else ""
    return "".join(f"- {mark}{_escaped(item)}\n" for item in block.items)


@_block.register
def _(block: Code) -> str:
    ticks = max(map(len, re.findall("`+", block.text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}\n{block.text}\n{fence}\n"


@_block.register
def _(block: Chain) -> str:
    return " → ".join(map(_escaped, block.names)) + "\n"


@_block.register
def _(block: Figures) -> str:
    return "".join(f"- {_escaped(figure.caption)}\n" for figure in block.figures) + (
        "\nThe curves are drawn where the report is written as HTML.\n"
    )


@_block.register
def _(block: Fold) -> str:
    return "\n".join([f"### {_escaped(block.title)}\n", *map(_block, block.blocks)])


@_block.register
def _(block: Table) -> str:
    heads = [_escaped(column.title) for column in block.columns]
    rules = ["---:" if column.holds == "figures" else "---" for column in block.columns]
    lines = [_line(heads), _line(rules), *(_line(_cells(row)) for row in block.rows)]
    return f"{_escaped(block.caption)}\n\n" + "".join(lines)


def _cells(row: list[Cell]) -> list[str]:
    """Both lines of every cell on one line."""
    return [f"{_escaped(c.text)} ({_escaped(c.small)})" if c.small else _escaped(c.text)
            for c in row]  # fmt: skip


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _escaped(text: str) -> str:
    """`text` so that no renderer takes any of it for markup or HTML."""
    text = re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A bare address would become a link to wherever a model's output says.
    return " ".join(text.replace("://", "&#58;//").split())
