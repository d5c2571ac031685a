"""Splits by document: decided by hashes, not by row order, and fenced off from each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from lcc.core.decode import card
from lcc.core.errors import DataError
from lcc.parts.rows import Row, normalised, short_digest, text_fields

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

    def _trim(
        self, dealt: dict[str, list[Row]], name: str, wanted: int, *, left_out: dict[str, int]
    ) -> None:
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


def check_fence(splits: Mapping[str, list[Row]], fields: Sequence[str]) -> int:
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
