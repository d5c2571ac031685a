"""A dataset folder that the `datasets` library saved with `save_to_disk`, read through pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from lcc.config.cards import card, digest
from lcc.core.disk import file_digest
from lcc.core.errors import DataError
from lcc.data.local_files import LocalFiles, Row


@card
class Saved(LocalFiles):
    """Rows of every split in the folder; class labels become their names."""

    word: ClassVar[str] = "saved"
    revision: ClassVar[int] = 1

    def fingerprint(self) -> str:
        folders = [(split, f) for split, path in self.files() for f in sorted(path.rglob("*.arrow"))]
        return digest([(split, file.name, file_digest(file)) for split, file in folders])

    def read_file(self, path: Path) -> Iterator[Row]:
        if (path / "dataset_dict.json").is_file():
            for split in _json(path / "dataset_dict.json")["splits"]:
                for row in _split_rows(path / split):
                    yield {**row, "split": split}
        else:
            yield from _split_rows(path)


def _split_rows(folder: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc

    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: was saved with an index; call flatten_indices() and save again.")
    names = _label_names(_json(folder / "dataset_info.json").get("features") or {})
    for file in state["_data_files"]:
        with pyarrow.memory_map(str(folder / file["filename"])) as source:
            for batch in pyarrow.ipc.open_stream(source):
                for row in batch.to_pylist():
                    yield {k: _named(v, names.get(k)) for k, v in row.items()}


def _label_names(features: dict[str, Any]) -> dict[str, list[str]]:
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def _named(value: Any, names: list[str] | None) -> Any:
    """A class number as its name; -1 is `datasets`' word for no label."""
    if names is None or value is None:
        return value
    return names[value] if 0 <= value < len(names) else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path.parent}: was not saved by save_to_disk ({path.name} is missing).")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
