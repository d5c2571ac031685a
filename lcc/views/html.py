"""The report as one HTML page: no script, nothing loaded from outside, every text escaped."""

from __future__ import annotations

from functools import singledispatch
from html import escape
from importlib.resources import files

from lcc.views.document import (
    Bullets,
    Cell,
    Chain,
    Code,
    Column,
    Document,
    Figures,
    Fold,
    Prose,
    Section,
    Table,
)

# Even if an escape were forgotten, a browser runs and loads nothing on this page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(document: Document) -> str:
    """The page for `document`, complete in itself."""
    style = files("lcc.views").joinpath("report.css").read_text(encoding="utf-8")
    title = escape(document.title)
    links = "".join(f'<a href="#{_anchor(s)}">{escape(s.title)}</a>' for s in document.sections)
    sections = "".join(map(_section, document.sections))
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


def _section(section: Section) -> str:
    blocks = "".join(map(_block, section.blocks))
    return (
        f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>\n{blocks}</section>\n'
    )


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


@singledispatch
def _block(block: object) -> str:
    raise AssertionError(f"no way to draw {block!r}")


@_block.register
def _(block: Prose) -> str:
    return f'<p class="{block.tone}" dir="auto">{escape(block.text)}</p>\n'


@_block.register
def _(block: Bullets) -> str:
    items = "".join(f'<li dir="auto">{escape(item)}</li>' for item in block.items)
    return f'<ul class="{block.tone}">{items}</ul>\n'


@_block.register
def _(block: Code) -> str:
    return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>\n'


@_block.register
def _(block: Chain) -> str:
    items = "".join(f"<li>{escape(name)}</li>" for name in block.names)
    return f'<ol class="chain">{items}</ol>\n'


@_block.register
def _(block: Figures) -> str:
    drawn = "".join(f"<figure>{figure.svg}<figcaption>{escape(figure.caption)}</figcaption>"
                    "</figure>" for figure in block.figures)  # fmt: skip
    return f'<div class="drawings">{drawn}</div>\n'


@_block.register
def _(block: Fold) -> str:
    inner = "".join(map(_block, block.blocks))
    return f"<details><summary>{escape(block.title)}</summary>{inner}</details>\n"


@_block.register
def _(block: Table) -> str:
    heads = "".join(f'<th scope="col" class="{c.holds}">{escape(c.title)}</th>'
                    for c in block.columns)  # fmt: skip
    rows = "".join(f"<tr>{_row(block.columns, row)}</tr>" for row in block.rows)
    caption = escape(block.caption)
    # The box scrolls, so it must be reachable without a pointer; its caption stays in sight.
    return (f'<p class="caption">{caption}</p><div class="box" role="region" tabindex="0" '
            f'aria-label="{caption}"><table aria-label="{caption}"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>\n")  # fmt: skip


def _row(columns: list[Column], row: list[Cell]) -> str:
    cells = zip(columns, row, strict=True)
    return "".join(_cell(column, cell, first=index == 0) for index, (column, cell)
                   in enumerate(cells))  # fmt: skip


def _cell(column: Column, cell: Cell, *, first: bool) -> str:
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    classes = f"{column.holds} {cell.tone}".strip()
    is_name = first and column.holds == "name"
    tag, scope = ("th", ' scope="row"') if is_name else ("td", "")
    return f'<{tag}{scope} class="{classes}" dir="auto">{escape(cell.text)}{small}</{tag}>'
