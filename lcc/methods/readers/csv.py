"""Comma-separated files with a header line, or with `columns` when they have none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from lcc.core.decode import card
from lcc.parts.local_files import TextFiles
from lcc.parts.rows import Row
from lcc.parts.tables import delimited_rows


@card
class Csv(TextFiles):
    """Rows from `.csv` files, quoted as spreadsheets do."""

    word: ClassVar[str] = "csv"
    revision: ClassVar[int] = 1

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    columns: tuple[str, ...] = ()

    def read_file(self, path: Path) -> Iterator[Row]:
        return delimited_rows(path, delimiter=self.delimiter, quoted=True, columns=self.columns,
                              encoding=self.encoding)  # fmt: skip
