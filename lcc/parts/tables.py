"""Delimited text as rows, with the line of every mistake."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lcc.core.errors import DataError
from lcc.parts.local_files import read_text
from lcc.parts.rows import Row


def delimited_rows(
    path: Path, *, delimiter: str, quoted: bool, columns: tuple[str, ...], encoding: str
) -> Iterator[Row]:
    """Rows of a delimited file; its first line names the columns unless `columns` does.

    Raises DataError with file and line for a row of another width.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    text = io.StringIO(read_text(path, encoding), newline="")
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
    names = list(columns)
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not names:
                names = [cell.strip() for cell in cells]
            elif cells:
                yield _row(names, cells, where=where)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}.") from None


def _row(names: list[str], cells: list[str], *, where: str) -> Row:
    if len(cells) != len(names):
        raise DataError(
            f"{where}: has {len(cells)} columns, expected {len(names)} ({', '.join(names)}); "
            "quote cells that hold the delimiter."
        )
    return dict(zip(names, cells, strict=True))
