"""Delimited text files (csv, tsv) as rows, with the line of every mistake."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import DataError
from lcc.data.local_files import Row, TextFiles, read_text


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


# Comma-separated files with a header line, or with `columns` when they have none.


@card
class Csv(TextFiles):
    """Rows from `.csv` files, quoted as spreadsheets do."""

    word: ClassVar[str] = "csv"
    revision: ClassVar[int] = 1

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    columns: tuple[str, ...] = ()

    def read_file(self, path: Path) -> Iterator[Row]:
        return delimited_rows(
            path, delimiter=self.delimiter, quoted=True, columns=self.columns, encoding=self.encoding
        )


# Tab-separated files, in which quotation marks are ordinary characters.


@card
class Tsv(TextFiles):
    """Rows from `.tsv` files with a header line, or with `columns` when they have none."""

    word: ClassVar[str] = "tsv"
    revision: ClassVar[int] = 1

    columns: tuple[str, ...] = ()

    def read_file(self, path: Path) -> Iterator[Row]:
        return delimited_rows(
            path, delimiter="\t", quoted=False, columns=self.columns, encoding=self.encoding
        )
