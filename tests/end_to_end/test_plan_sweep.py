"""A sweep of plans: calibration once, one table of all points, and a page of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lcc.cli import main
from lcc.store.runs import RunFacts, find_run, read_run
from lcc.store.sweeps import Point

WORDS = ["-m", "model=tiny_llama", "task=generation", "dataset=tiny_text", "scale=smoke",
         "threads=1", "plan=sparse50_sparsegpt,width25_heal"]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The facts of both points, and the sweep's own run in the same folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("swept"))
        assert main(["compress", *WORDS]) == 0
        sweep = read_run(find_run(None))
        found = []
        for path in Path("runs").glob("*/run.json"):
            found.append({**json.loads(path.read_text()), "folder": path.parent.resolve()})
        return [{"sweep": sweep}, *sorted(found, key=lambda f: str(f["words"]))]


def statuses(facts: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["status"] for step in facts["steps"]}


def test_points_over_one_parent_share_their_calibration(swept: list[dict[str, Any]]) -> None:
    points = [facts for facts in swept[1:] if facts["verb"] == "compress"]
    assert len(points) == 2
    stats = {
        name: status
        for facts in points
        for name, status in statuses(facts).items()
        if name.endswith(".stats")
    }
    assert stats == {"sparsify.stats": "finished", "width.stats": "reused"}
    assert {statuses(facts).get("sparsify") or statuses(facts)["width"] for facts in points} == {"finished"}


def test_every_point_is_judged_beside_the_parent_and_raced_once(swept: list[dict[str, Any]]) -> None:
    sweep: RunFacts = swept[0]["sweep"]
    names = ["base", "sparse50_sparsegpt", "width25_heal"]
    assert list(sweep.checkpoints) == names
    kinds = [step.kind for step in sweep.steps]
    assert kinds.count("bench") == 1 and kinds.count("base") == 1 and kinds.count("eval") == 3
    assert [s.status for s in sweep.steps if s.kind != "bench"] == ["reused"] * (len(kinds) - 1)
    bench = sweep.of_kind("bench")[0].report
    assert bench is not None
    assert {row["checkpoint"] for row in bench.tables["speed"]} == set(names)


def test_a_label_is_the_choice_where_one_group_varies() -> None:
    assert Point(0, [], {"plan": "w8"}).label == "w8"
    assert Point(0, [], {"plan.quantize.bits": "4"}).label == "plan.quantize.bits=4"
    assert Point(0, [], {"plan": "w8", "seed": "1"}).label == "plan=w8,seed=1"
