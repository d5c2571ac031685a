"""Prompt templates: plain text in which `{field}` stands for a row's value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lcc.core.errors import DataError

if TYPE_CHECKING:
    from lcc.tasks.faq import Grounding

Row = Mapping[str, Any]
PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")


class PromptSource(Protocol):
    """What a task gives to those who write its rows as prompts."""

    @property
    def name(self) -> str: ...
    @property
    def template(self) -> str: ...
    @property
    def system(self) -> str: ...
    @property
    def turns(self) -> str: ...
    @property
    def passage(self) -> str: ...
    @property
    def truncate(self) -> Literal["left", "right"]: ...
    @property
    def grounding(self) -> Grounding | None: ...
    def completion(self, row: Row) -> str:
        """The answer that `row` holds."""


def fill(template: str, row: Row) -> str:
    """The template with the row's values; raises DataError for a field the row lacks."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group(0)[0]
        if name not in row:
            have = ", ".join(sorted(map(str, row)))
            raise DataError(f"row {row.get('id')}: no field {name!r} for the task; it has {have}.")
        return str(row[name])

    return PLACE.sub(value, template)


def places(template: str) -> list[str]:
    """The fields that a template names, in order."""
    return [name for name in PLACE.findall(template) if name]
