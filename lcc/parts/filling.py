"""Templates: plain text in which `{field}` stands for a row's value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lcc.core.errors import DataError

Row = Mapping[str, Any]
PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")


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
