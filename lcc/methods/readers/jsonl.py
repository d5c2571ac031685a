"""JSON lines: one object a line; blank lines are skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from lcc.config.cards import card
from lcc.core.errors import DataError
from lcc.data.local_files import LocalFiles, Row, read_text


@card
class Jsonl(LocalFiles):
    """Rows from `.jsonl` files."""

    word: ClassVar[str] = "jsonl"
    revision: ClassVar[int] = 1

    def read_file(self, path: Path) -> Iterator[Row]:
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.strip():
                yield _row(line, where=f"{path}:{number}")


def _row(line: str, *, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON: {error.msg} at column {error.colno}.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object {{…}}, got {type(row).__name__}.")
    return row
