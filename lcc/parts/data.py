"""A dataset: read, cleaned, split by document, fenced, and kept as three JSON-lines files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lcc.core.catalog import Choice
from lcc.core.decode import card
from lcc.core.describe import describe, digest
from lcc.core.errors import DataError
from lcc.core.nearest import did_you_mean
from lcc.core.progress import Progress
from lcc.parts import splits as dealing
from lcc.parts.cleaning import Cleaning
from lcc.parts.packages import Requirement
from lcc.parts.rows import (
    Row,
    normalised,
    read_rows,
    short_digest,
    stream_rows,
    text_fields,
    with_fields,
    write_rows,
)
from lcc.parts.splits import SPLITS, Splits


@card
class DatasetSpec:
    """One card of `configs/dataset`: where rows come from and how they are cleaned and split.

    `fields` maps our names (source, target, text, label …) to the source's columns. `bytes` and
    `licence` are told before anything is fetched; `rows` and `tokens` of the training split are
    about what `lcc preview` reckons with.
    """

    word: ClassVar[str] = "data"
    revision: ClassVar[int] = 1

    name: str = "dataset"
    description: str = ""
    licence: str = ""
    bytes: Annotated[int, Field(ge=0)] = 0
    rows: Annotated[int, Field(ge=0)] = 0
    tokens: Annotated[int, Field(ge=0)] = 0
    source: Annotated[Any, Choice("readers")]
    fields: dict[str, str] = field(default_factory=dict)
    cleaning: Cleaning = field(default_factory=Cleaning)
    splits: Splits = field(default_factory=Splits)


@dataclass(frozen=True)
class Counts:
    """What a preparation read, removed and kept."""

    read: int
    removed: dict[str, int]
    left_out: dict[str, int]
    rows: dict[str, int]
    documents: dict[str, int]
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    fenced_fields: list[str] = field(default_factory=list)
    num_fenced_texts: int = 0


@dataclass(frozen=True)
class PreparedData:
    """The three splits of one prepared folder."""

    folder: Path
    counts: Counts

    @classmethod
    def open(cls, folder: Path) -> PreparedData:
        """The data in `folder`; raises DataError when it holds none."""
        path = folder / "counts.json"
        if not path.is_file():
            raise DataError(f"{folder}: holds no prepared data (counts.json is missing).")
        return cls(folder, Counts(**json.loads(path.read_text(encoding="utf-8"))))

    def rows(self, split: str) -> list[Row]:
        """Every row of `split`: train, validation or test."""
        assert split in SPLITS, split
        return list(self._splits[split])

    def stream(self, split: str, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Rows of `split` from byte `start` on, one at a time, each with where the next begins."""
        assert split in SPLITS, split
        return stream_rows(self.folder / f"{split}.jsonl", start)

    @cached_property
    def _splits(self) -> dict[str, list[Row]]:
        return {name: read_rows(self.folder / f"{name}.jsonl") for name in SPLITS}


def requirements(spec: DatasetSpec) -> list[Requirement]:
    """Everything that `spec` needs from outside, fetched or not."""
    return list(spec.source.requirements())


def fingerprint(spec: DatasetSpec) -> str:
    """Digest of everything that decides the prepared rows; its name and licence do not."""
    deciding = {
        "revision": spec.revision,
        "fields": spec.fields,
        "source": spec.source.fingerprint(),
        "reader": describe(spec.source),
        "cleaning": describe(spec.cleaning),
        "splits": describe(spec.splits),
    }
    return digest(deciding)


def missing(spec: DatasetSpec) -> str | None:
    """The sentence that says what must be fetched first and how, or None."""
    absent = [one for one in requirements(spec) if one.found is None]
    if not absent:
        return None
    size = sum(one.bytes for one in absent)
    licences = ", ".join(dict.fromkeys(one.licence for one in absent if one.licence))
    told = f"{size / 1e6:,.1f} MB" + (f"; {licences}" if licences else "")
    packages = "1 package" if len(absent) == 1 else f"{len(absent)} packages"
    return f"dataset '{spec.name}' needs {packages} ({told}); run: lcc fetch dataset={spec.name}"


def prepare(spec: DatasetSpec, folder: Path, progress: Progress) -> Counts:
    """Read, clean, split, fence and write `folder`; raises DataError when a split ends up empty."""
    sentence = missing(spec)
    if sentence is not None:
        raise DataError(f"{sentence}.")
    raw = list(_read(spec, progress))
    _check_fields(spec, raw)
    kept, removed = spec.cleaning.clean(raw, progress)
    kept = _identified(kept)
    dealt, left_out = spec.splits.deal(kept)
    _refuse_empty(spec, dealt, read=len(raw), removed=removed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in dealt.items():
        write_rows(folder / f"{name}.jsonl", rows)
    counts = _counted(spec, dealt, read=len(raw), removed=removed, left_out=left_out)
    text = json.dumps(asdict(counts), ensure_ascii=False, indent=1)
    (folder / "counts.json").write_text(text + "\n", encoding="utf-8")
    check_fence(folder)
    return counts


def check_fence(folder: Path) -> int:
    """Prove from disk that nothing of a held-out split stands in training; texts compared."""
    data = PreparedData.open(folder)
    return dealing.check_fence({n: data.rows(n) for n in SPLITS}, data.counts.fenced_fields)


def _read(spec: DatasetSpec, progress: Progress) -> Iterator[Row]:
    with progress.track(f"read {spec.name}", unit="row") as bar:
        for row in with_fields(spec.source.read(), spec.fields, where=f"dataset '{spec.name}'"):
            bar.advance()
            yield row


def _check_fields(spec: DatasetSpec, rows: list[Row]) -> None:
    """Options that name fields must name fields that the rows have."""
    found = text_fields(rows[0]) if rows else []
    named = {"cleaning.languages": spec.cleaning.languages, "splits.fence": spec.splits.fence}
    for option, names in named.items():
        for name in names:
            if rows and name not in found:
                raise DataError(
                    f"dataset.{option}: rows have no field {name!r}{did_you_mean(name, found)}"
                )


def _identified(rows: list[Row]) -> list[Row]:
    """Every row with an `id` of its own and a `doc`, before its other fields."""
    named = []
    for row in rows:
        texts = [row[name] for name in text_fields(row)]
        doc = row.get("doc") if row.get("doc") is not None else normalised(texts[0])[:40]
        identity = row.get("id") if row.get("id") is not None else short_digest(str(doc), *texts)
        named.append({**row, "id": str(identity), "doc": str(doc)})
    order = ("id", "doc")
    return [{**{k: row[k] for k in order}, **row} for row in named]


def _refuse_empty(
    spec: DatasetSpec, dealt: dict[str, list[Row]], *, read: int, removed: dict[str, int]
) -> None:
    asked = {"train": 1, "validation": spec.splits.validation, "test": spec.splits.test}
    empty = [name for name, rows in dealt.items() if asked[name] and not rows]
    if not empty:
        return
    kept = [row for rows in dealt.values() for row in rows]
    why = ", ".join(f"{reason}: {n}" for reason, n in removed.items()) or "nothing was removed"
    num_docs = len({row["doc"] for row in kept})
    way_out = "loosen dataset.cleaning or dataset.splits"
    if kept and num_docs < len(SPLITS):
        way_out = "map dataset.fields.doc to a finer column, or set dataset.splits.validation=0"
    raise DataError(
        f"dataset '{spec.name}': the {' and '.join(empty)} split is empty; of {read} rows read "
        f"({why}) {len(kept)} from {num_docs} documents were kept; {way_out}."
    )


def _counted(
    spec: DatasetSpec,
    dealt: dict[str, list[Row]],
    *,
    read: int,
    removed: dict[str, int],
    left_out: dict[str, int],
) -> Counts:
    labels = {
        name: dict(sorted(Counter(str(r["label"]) for r in rows if "label" in r).items()))
        for name, rows in dealt.items()
    }
    return Counts(
        read=read,
        removed=removed,
        left_out=left_out,
        rows={name: len(rows) for name, rows in dealt.items()},
        documents={name: len({row["doc"] for row in rows}) for name, rows in dealt.items()},
        labels=labels if any(labels.values()) else {},
        fenced_fields=list(spec.splits.fence),
        num_fenced_texts=dealing.check_fence(dealt, spec.splits.fence),
    )
