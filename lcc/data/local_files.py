"""Local data files: found relative to where the user stands, or shipped with the configs."""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lcc.config.cards import Mistake, Mistakes, card, digest
from lcc.config.yaml_files import config_roots, packaged_file
from lcc.core.disk import file_digest
from lcc.core.errors import DataError, RecipeError, did_you_mean
from lcc.core.progress import Progress

# Rows: plain dicts with `id`, `doc` and the dataset's own fields, and what readers owe them.

Row = dict[str, Any]
R = TypeVar("R")

KEPT_APART = ("id", "doc", "split", "label")
USUAL = ("source", "target", "text")
WORDLESS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Requirement(ABC):
    """One file that a model or a dataset needs, announced with its size before it is fetched."""

    requirement: str
    bytes: int = 0
    licence: str = ""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is called in a list: `package`."""

    @property
    @abstractmethod
    def path(self) -> Path | None:
        """Where it lies, if it was fetched."""

    @abstractmethod
    def fetch(self, progress: Progress) -> Path:
        """Its path, after a download if need be."""

    @property
    def digest(self) -> str | None:
        """SHA-256 of its file, if it is there."""
        return None if self.path is None else file_digest(self.path)


class Reader(Protocol):
    """Where rows come from. Implementations are cards on the shelf `readers`."""

    def requirements(self) -> tuple[Requirement, ...]:
        """What must be fetched first; empty for local files."""

    def fingerprint(self) -> str:
        """Digest of the bytes that will be read; the same whether they were fetched yet or not."""

    def read(self) -> Iterator[Row]:
        """Every row, in a fixed order, with the source's own column names."""


def text_fields(row: Mapping[str, Any]) -> list[str]:
    """The fields whose text is cleaned, compared and fenced: source, target and text where a row
    has any of them, else every field that holds text. Others are only carried along.
    """
    names = [
        name
        for name, value in row.items()
        if name not in KEPT_APART and (value is None or isinstance(value, str))
    ]
    return [name for name in names if name in USUAL] or names


def in_turns(rows: Iterable[R], label_of: Callable[[R], str]) -> list[R]:
    """One row of each label after another, in the order given."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        seen[label := label_of(row)] += 1
        turns.append((seen[label], row))
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])]


def normalised(text: str) -> str:
    """What two texts share when they differ only in case, width, spaces and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return WORDLESS.sub("", folded) or folded.strip()


def short_digest(*parts: str) -> str:
    """16 hex characters that depend on `parts` and on nothing else."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def with_fields(rows: Iterable[Row], fields: Mapping[str, str], *, where: str) -> Iterator[Row]:
    """Rows under our names: `fields` maps our name → the source's column.

    Raises DataError naming the columns found when one is missing.
    """
    for number, row in enumerate(rows, start=1):
        if not fields:
            yield row
            continue
        for column in fields.values():
            if column not in row:
                raise DataError(
                    f"{where}: row {number} has no column {column!r}; found "
                    f"{', '.join(map(repr, row))}{did_you_mean(column, row)} Set dataset.fields."
                )
        extra: Row = {name: row[name] for name in ("id", "doc", "split") if name in row}
        yield {**extra, **{ours: row[column] for ours, column in fields.items()}}


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file that we wrote ourselves."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def stream_rows(path: Path, start: int = 0) -> Iterator[tuple[int, Row]]:
    """Each row from byte `start` on with the byte where the next one begins, one held at a time."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            yield start, json.loads(line)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line, keys in their order."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.chmod(0o644)


@card
class LocalFiles:
    """Exactly one of `path` (a file, or a pattern like `data/*.jsonl`), `paths` (split → file) and
    `packaged` (a file below `configs/dataset`).
    """

    path: str | None = None
    paths: dict[str, str] = field(default_factory=dict)
    packaged: str | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("path", "paths", "packaged") if getattr(self, n)]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(f"give exactly one of path, paths and packaged, got {got}")

    def requirements(self) -> tuple[Requirement, ...]:
        return ()

    def fingerprint(self) -> str:
        return digest([(split, file_digest(path)) for split, path in self.files()])

    def read(self) -> Iterator[Row]:
        for split, path in self.files():
            for row in self.read_file(path):
                yield {**row, "split": split} if split else row

    def files(self) -> list[tuple[str | None, Path]]:
        """Split (where known) and path of every file; raises RecipeError when one is not there."""
        if self.packaged is not None:
            return [(None, _packaged(self.packaged))]
        if self.path is not None:
            return [(None, path) for path in _matching(self.path, "dataset.source.path")]
        return [
            (split, path)
            for split, given in self.paths.items()
            for path in _matching(given, f"dataset.source.paths.{split}")
        ]

    def read_file(self, path: Path) -> Iterator[Row]:
        """The rows of one file, in its own order."""
        raise AssertionError(f"{type(self).__name__} does not say how to read {path}")


@card
class TextFiles(LocalFiles):
    """Local files of text in `encoding`, a name that Python knows (utf-8, latin-1, gb18030 …)."""

    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"no encoding is named {self.encoding!r}") from None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A file's text; raises DataError naming the line that is not in `encoding`."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: is not {encoding.upper()}; set dataset.source.encoding (csv, tsv and "
            "lines), e.g. latin-1, or convert the file with iconv."
        ) from None


def _packaged(relative: str) -> Path:
    path = packaged_file(f"dataset/{relative}")
    if path is None:
        roots = ", ".join(str(root / "dataset") for root in config_roots())
        raise RecipeError(f"dataset.source.packaged: no file {relative!r} in {roots}.")
    return path


def _matching(given: str, key: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.exists():
        return [path]
    paths = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    if paths:
        return paths
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, near)
    raise Mistakes([Mistake(key, f"no file {given!r}{hint if 'mean' in hint else '.'}")])
