"""The first step of every recipe with data writes the splits and reports what was removed."""

from __future__ import annotations

import json
from pathlib import Path

from data_archives import pairs

from lcc.config.cards import decode
from lcc.core.progress import Progress
from lcc.data.dataset import PreparedData
from lcc.distributed.dist import SINGLE
from lcc.methods.trackers.none import NoneTracker
from lcc.pipeline.stage import Context
from lcc.stages.prepare import Prepare


def test_the_splits_lie_in_data_and_the_counts_in_the_report(tmp_path: Path) -> None:
    rows = pairs(12, 5)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, rows[0]]))
    spec = {
        "source": {"name": "jsonl", "path": str(tmp_path / "rows.jsonl")},
        "cleaning": {"near_duplicates": None},
        "splits": {"validation": 5, "test": 5},
    }
    stage = decode(Prepare, {"spec": spec})
    context = Context(
        folder=tmp_path / "work",
        seed=0,
        device="cpu",
        dtype="float32",
        dist=SINGLE,
        progress=Progress(quiet=True),
        tracker=NoneTracker(),
    )
    outcome = stage.run(None, context)
    assert len(PreparedData.open(tmp_path / "work/data").rows("train")) == 50
    assert outcome.bundle is None
    assert outcome.measures["num_train"].value == 50
    assert {"rule": "duplicate", "rows": 1} in outcome.tables["removed"]
    assert [row["split"] for row in outcome.tables["splits"]] == ["train", "validation", "test"]
