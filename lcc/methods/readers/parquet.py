"""Parquet files, read batch by batch through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from lcc.config.cards import card
from lcc.core.errors import DataError
from lcc.data.local_files import LocalFiles, Row


@card
class Parquet(LocalFiles):
    """Rows from `.parquet` files."""

    word: ClassVar[str] = "parquet"
    revision: ClassVar[int] = 1

    def read_file(self, path: Path) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: is not readable as parquet: {error}.") from error
