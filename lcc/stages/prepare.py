"""Prepare the dataset once: read, clean and split it; every later step shares the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.progress import Measure
from lcc.data import dataset
from lcc.data.dataset import DatasetSpec
from lcc.pipeline.stage import Outcome

if TYPE_CHECKING:
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun


@card
class Prepare:
    """Write the three splits of `spec` into `data/`."""

    reads: ClassVar[tuple[Noun, ...]] = ()
    accepts: ClassVar[tuple[Form, ...]] = ()
    changes_model: ClassVar[bool] = False
    word: ClassVar[str] = "prepare"
    revision: ClassVar[int] = 1

    spec: DatasetSpec

    def run(self, bundle: Bundle | None, context: Context) -> Outcome:
        folder = context.folder / "data"
        counts = dataset.prepare(self.spec, folder, context.progress)
        removed = [
            {"rule": rule, "rows": num_rows}
            for rule, num_rows in {**counts.removed, **counts.left_out}.items()
        ]
        splits = [
            {"split": name, "rows": rows, "documents": counts.documents[name], **counts.labels.get(name, {})}
            for name, rows in counts.rows.items()
        ]
        return Outcome(
            measures={
                "num_rows_read": Measure(counts.read, "count"),
                **{f"num_{name}": Measure(rows, "count") for name, rows in counts.rows.items()},
                "num_fenced_texts": Measure(counts.num_fenced_texts, "count"),
            },
            tables={"splits": splits, "removed": removed},
            files={"data": folder},
        )
