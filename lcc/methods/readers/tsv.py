"""Tab-separated files, in which quotation marks are ordinary characters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from lcc.core.decode import card
from lcc.parts.local_files import TextFiles
from lcc.parts.rows import Row
from lcc.parts.tables import delimited_rows


@card
class Tsv(TextFiles):
    """Rows from `.tsv` files with a header line, or with `columns` when they have none."""

    word: ClassVar[str] = "tsv"
    revision: ClassVar[int] = 1

    columns: tuple[str, ...] = ()

    def read_file(self, path: Path) -> Iterator[Row]:
        return delimited_rows(path, delimiter="\t", quoted=False, columns=self.columns,
                              encoding=self.encoding)  # fmt: skip
