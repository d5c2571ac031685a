"""HTML and Markdown of a report: no script, nothing loaded from outside, every text escaped."""

from __future__ import annotations

import re
from functools import singledispatch
from html import escape
from importlib.resources import files

from lcc.reports.document import (
    Bullets,
    Cell,
    Chain,
    Code,
    Collapsible,
    Column,
    Document,
    Figures,
    Prose,
    Section,
    Table,
)

# Even if an escape were forgotten, a browser runs and loads nothing on this page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(document: Document) -> str:
    """The page for `document`, complete in itself."""
    style = files("lcc.reports").joinpath("report.css").read_text(encoding="utf-8")
    title = escape(document.title)
    links = "".join(f'<a href="#{_anchor(s)}">{escape(s.title)}</a>' for s in document.sections)
    sections = "".join(map(_html_section, document.sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · lcc report</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="subtitle">{escape(document.subtitle)}</p>
<p class="headline">{escape(document.headline)}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{sections}</main>
</body>
</html>
"""


def _html_section(section: Section) -> str:
    blocks = "".join(map(_html_block, section.blocks))
    return f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>\n{blocks}</section>\n'


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


@singledispatch
def _html_block(block: object) -> str:
    raise AssertionError(f"no way to draw {block!r}")


@_html_block.register
def _(block: Prose) -> str:
    return f'<p class="{block.tone}" dir="auto">{escape(block.text)}</p>\n'


@_html_block.register
def _(block: Bullets) -> str:
    items = "".join(f'<li dir="auto">{escape(item)}</li>' for item in block.items)
    return f'<ul class="{block.tone}">{items}</ul>\n'


@_html_block.register
def _(block: Code) -> str:
    return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>\n'


@_html_block.register
def _(block: Chain) -> str:
    items = "".join(f"<li>{escape(name)}</li>" for name in block.names)
    return f'<ol class="chain">{items}</ol>\n'


@_html_block.register
def _(block: Figures) -> str:
    drawn = "".join(
        f"<figure>{figure.svg}<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in block.figures
    )
    return f'<div class="drawings">{drawn}</div>\n'


@_html_block.register
def _(block: Collapsible) -> str:
    inner = "".join(map(_html_block, block.blocks))
    return f"<details><summary>{escape(block.title)}</summary>{inner}</details>\n"


@_html_block.register
def _(block: Table) -> str:
    heads = "".join(f'<th scope="col" class="{c.holds}">{escape(c.title)}</th>' for c in block.columns)
    rows = "".join(f"<tr>{_row(block.columns, row)}</tr>" for row in block.rows)
    caption = escape(block.caption)
    # The box scrolls, so it must be reachable without a pointer; its caption stays in sight.
    return (
        f'<p class="caption">{caption}</p><div class="box" role="region" tabindex="0" '
        f'aria-label="{caption}"><table aria-label="{caption}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>\n"
    )


def _row(columns: list[Column], row: list[Cell]) -> str:
    cells = zip(columns, row, strict=True)
    return "".join(_cell(column, cell, first=index == 0) for index, (column, cell) in enumerate(cells))


def _cell(column: Column, cell: Cell, *, first: bool) -> str:
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    classes = f"{column.holds} {cell.tone}".strip()
    is_name = first and column.holds == "name"
    tag, scope = ("th", ' scope="row"') if is_name else ("td", "")
    return f'<{tag}{scope} class="{classes}" dir="auto">{escape(cell.text)}{small}</{tag}>'


# The report as Markdown, for terminals, pull requests and mail; every text escaped.


def to_markdown(document: Document) -> str:
    """The whole report as one Markdown text."""
    head = (
        f"# {_escaped(document.title)}\n\n{_escaped(document.subtitle)}\n\n"
        f"**{_escaped(document.headline)}**\n"
    )
    return "\n".join([head, *map(_markdown_section, document.sections)])


def _markdown_section(section: Section) -> str:
    return "\n".join([f"## {_escaped(section.title)}\n", *map(_markdown_block, section.blocks)])


@singledispatch
def _markdown_block(block: object) -> str:
    raise AssertionError(f"no way to write {block!r}")


@_markdown_block.register
def _(block: Prose) -> str:
    return f"{_escaped(block.text)}\n"


@_markdown_block.register
def _(block: Bullets) -> str:
    mark = "⚠ " if block.tone == "bad" else ""
    return "".join(f"- {mark}{_escaped(item)}\n" for item in block.items)


@_markdown_block.register
def _(block: Code) -> str:
    ticks = max(map(len, re.findall("`+", block.text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}\n{block.text}\n{fence}\n"


@_markdown_block.register
def _(block: Chain) -> str:
    return " → ".join(map(_escaped, block.names)) + "\n"


@_markdown_block.register
def _(block: Figures) -> str:
    return "".join(f"- {_escaped(figure.caption)}\n" for figure in block.figures) + (
        "\nThe curves are drawn where the report is written as HTML.\n"
    )


@_markdown_block.register
def _(block: Collapsible) -> str:
    return "\n".join([f"### {_escaped(block.title)}\n", *map(_markdown_block, block.blocks)])


@_markdown_block.register
def _(block: Table) -> str:
    heads = [_escaped(column.title) for column in block.columns]
    rules = ["---:" if column.holds == "figures" else "---" for column in block.columns]
    lines = [_line(heads), _line(rules), *(_line(_cells(row)) for row in block.rows)]
    return f"{_escaped(block.caption)}\n\n" + "".join(lines)


def _cells(row: list[Cell]) -> list[str]:
    """Both lines of every cell on one line."""
    return [f"{_escaped(c.text)} ({_escaped(c.small)})" if c.small else _escaped(c.text) for c in row]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _escaped(text: str) -> str:
    """`text` so that no renderer takes any of it for markup or HTML."""
    text = re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A bare address would become a link to wherever a model's output says.
    return " ".join(text.replace("://", "&#58;//").split())
