"""Local data files: found relative to where the user stands, or shipped with the configs."""

from __future__ import annotations

import codecs
import glob
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path

from lcc.core.decode import Mistake, Mistakes, card
from lcc.core.describe import digest
from lcc.core.errors import DataError, RecipeError
from lcc.core.nearest import did_you_mean
from lcc.core.packaged import config_roots, packaged_file
from lcc.parts.packages import Requirement, file_digest
from lcc.parts.rows import Row


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
    found = packaged_file(f"dataset/{relative}")
    if found is None:
        roots = ", ".join(str(root / "dataset") for root in config_roots())
        raise RecipeError(f"dataset.source.packaged: no file {relative!r} in {roots}.")
    return found


def _matching(given: str, key: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.exists():
        return [path]
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    if found:
        return found
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, near)
    raise Mistakes([Mistake(key, f"no file {given!r}{hint if 'mean' in hint else '.'}")])
