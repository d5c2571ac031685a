"""Dataset preparation: rows read, cleaned, split by document, fenced, kept as JSON-lines files."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from lcc.config.cards import Choice, card, describe, digest
from lcc.core import format
from lcc.core.disk import write_json
from lcc.core.errors import DataError, did_you_mean
from lcc.core.progress import Progress
from lcc.data.cleaning import Cleaning
from lcc.data.local_files import (
    Requirement,
    Row,
    normalised,
    read_rows,
    short_digest,
    stream_rows,
    text_fields,
    with_fields,
    write_rows,
)

# Splits by document: decided by hashes, not by row order, and fenced off from each other.

SPLITS = ("train", "validation", "test")
ALIASES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
           "val": "validation", "dev": "validation", "test": "test", "eval": "test"}  # fmt: skip


def _amount(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"expected a share below 1 or a whole number of rows, got {value}")
    return value


Amount = Annotated[float, Field(ge=0), AfterValidator(_amount)]


@card
class Splits:
    """How rows are dealt out: a share of all rows (0.05), as nearly as whole documents
    allow, or a number of them (500), the rest of whose documents is left out.

    Whole documents go to one split; rows that bring a `split` of their own stay there. `fence`
    names the fields whose text may stand in one split only (empty: every text field). `salt`
    gives another, equally fixed, deal.
    """

    word: ClassVar[str] = "splits"
    revision: ClassVar[int] = 1

    validation: Amount = 0.05
    test: Amount = 0.05
    max_train: Annotated[int, Field(ge=1)] | None = None
    fence: tuple[str, ...] = ()
    salt: str = ""

    def deal(self, rows: list[Row]) -> tuple[dict[str, list[Row]], dict[str, int]]:
        """The rows of each split, and how many rows the fence and the limits left out."""
        given = {ALIASES.get(str(row["split"]).lower()) for row in rows if row.get("split")}
        held_out = self._held_out(rows, given)
        dealt: dict[str, list[Row]] = {name: [] for name in SPLITS}
        for row in rows:
            own = ALIASES.get(str(row.get("split", "")).lower())
            name = own if own in ("validation", "test") else held_out.get(str(row["doc"]), "train")
            dealt[name].append({k: v for k, v in row.items() if k != "split"})
        left_out: dict[str, int] = {}
        for name, wanted in self._wanted(len(rows)).items():
            # A share is met as nearly as whole documents allow; a number is a number.
            if name not in given and getattr(self, name) >= 1:
                self._trim(dealt, name, wanted, left_out=left_out)
        fence(dealt, self.fence, left_out=left_out)
        if self.max_train is not None:
            self._trim(dealt, "train", self.max_train, left_out=left_out)
        return dealt, left_out

    def _wanted(self, num_rows: int) -> dict[str, int]:
        """Rows asked for in each held-out split; a share of few rows is at least one."""
        asked = {"test": self.test, "validation": self.validation}
        return {
            name: int(value) if value >= 1 else max(round(value * num_rows), int(value > 0))
            for name, value in asked.items()
        }

    def _held_out(self, rows: list[Row], given: set[str | None]) -> dict[str, str]:
        """Document → the held-out split it goes to."""
        sizes: dict[str, int] = defaultdict(int)
        for row in rows:
            if ALIASES.get(str(row.get("split", "")).lower()) in (None, "train"):
                sizes[str(row["doc"])] += 1
        chosen: dict[str, str] = {}
        for name, wanted in self._wanted(len(rows)).items():
            if name not in given and wanted:
                order = sorted(sizes, key=lambda doc: short_digest(self.salt, name, doc))
                for doc in _filled(order, sizes, wanted):
                    chosen[doc] = name
                    del sizes[doc]
        return chosen

    def _trim(self, dealt: dict[str, list[Row]], name: str, wanted: int, *, left_out: dict[str, int]) -> None:
        """Keep `wanted` rows of a split, chosen by their hash, in their old order."""
        rows = dealt[name]
        if len(rows) <= wanted:
            return
        ranked = sorted(rows, key=lambda row: short_digest(self.salt, "trim", str(row["id"])))
        kept = {id(row) for row in ranked[:wanted]}
        dealt[name] = [row for row in rows if id(row) in kept]
        left_out[f"over the limit ({name})"] = len(rows) - wanted


def fence(dealt: dict[str, list[Row]], fields: Sequence[str], *, left_out: dict[str, int]) -> None:
    """Drop rows whose text stands in a more protected split: test, then validation, then train.

    In place; `left_out` gains the counts.
    """
    protected: dict[str, str] = {}
    for name in reversed(SPLITS):
        free = [row for row in dealt[name] if _clash(row, fields, protected) is None]
        if len(free) < len(dealt[name]):
            left_out[f"also in a held-out split ({name})"] = len(dealt[name]) - len(free)
        dealt[name] = free
        protected |= {key: name for row in free for key in _keys(row, fields)}


def check_disjoint(splits: Mapping[str, list[Row]], fields: Sequence[str]) -> int:
    """Prove that no text of `fields` stands in two splits; the number of texts compared.

    Raises DataError naming the first row that does.
    """
    protected: dict[str, str] = {}
    for name in reversed(SPLITS):
        for row in splits[name]:
            other = _clash(row, fields, protected)
            if other is not None:
                raise DataError(
                    f"{name} row {row['id']!r} has a text that also stands in {other}; the data "
                    "were changed after they were prepared: prepare them again."
                )
        protected |= {key: name for row in splits[name] for key in _keys(row, fields)}
    return len(protected)


def _keys(row: Row, fields: Sequence[str]) -> list[str]:
    """What must not stand in two splits: each normalised text, whichever field it is in."""
    return [normalised(str(row[name])) for name in fields or text_fields(row)]


def _clash(row: Row, fields: Sequence[str], protected: Mapping[str, str]) -> str | None:
    """The split that already holds one of this row's texts."""
    return next((protected[key] for key in _keys(row, fields) if key in protected), None)


def _filled(order: list[str], sizes: Mapping[str, int], wanted: int) -> list[str]:
    """Documents for a held-out split: many small ones before one that would fill it alone."""
    small = [doc for doc in order if sizes[doc] <= max(wanted // 4, 1)]
    others = set(order) - set(small)
    large = sorted((doc for doc in order if doc in others), key=lambda doc: sizes[doc])
    chosen: list[str] = []
    total = 0
    for doc in [*small, *large]:
        # The last document is never taken: training needs one.
        if total >= wanted or len(chosen) == len(order) - 1:
            break
        chosen.append(doc)
        total += sizes[doc]
    return chosen


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
    absent = [one for one in requirements(spec) if one.path is None]
    if not absent:
        return None
    size = sum(one.bytes for one in absent)
    licences = ", ".join(dict.fromkeys(one.licence for one in absent if one.licence))
    download = format.size(size) + (f"; {licences}" if licences else "")
    packages = "1 package" if len(absent) == 1 else f"{len(absent)} packages"
    return f"dataset '{spec.name}' needs {packages} ({download}); run: lcc fetch dataset={spec.name}"


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
    write_json(folder / "counts.json", asdict(counts))
    check_fence(folder)
    return counts


def check_fence(folder: Path) -> int:
    """Prove from disk that nothing of a held-out split stands in training; texts compared."""
    data = PreparedData.open(folder)
    return check_disjoint({n: data.rows(n) for n in SPLITS}, data.counts.fenced_fields)


def _read(spec: DatasetSpec, progress: Progress) -> Iterator[Row]:
    with progress.track(f"read {spec.name}", unit="row") as bar:
        for row in with_fields(spec.source.read(), spec.fields, where=f"dataset '{spec.name}'"):
            bar.advance()
            yield row


def _check_fields(spec: DatasetSpec, rows: list[Row]) -> None:
    """Options that name fields must name fields that the rows have."""
    fields = text_fields(rows[0]) if rows else []
    named = {"cleaning.languages": spec.cleaning.languages, "splits.fence": spec.splits.fence}
    for option, names in named.items():
        for name in names:
            if rows and name not in fields:
                raise DataError(f"dataset.{option}: rows have no field {name!r}{did_you_mean(name, fields)}")


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
        num_fenced_texts=check_disjoint(dealt, spec.splits.fence),
    )
