"""A metric's card is the only source of its direction, label, unit and place, also of a plug-in's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lcc.reports import charts, results
from lcc.reports.results import CheckpointRow, Score
from lcc.reports.run import headline
from lcc.store.runs import MetricFacts, RunFacts, read_run

CARD = '''"""Toxicity: the share of answers that hold a word of a list."""

from typing import ClassVar

import numpy as np

from lcc.config.cards import card


@card
class Toxicity:
    """Whether an answer is long, which is as toxic as a tiny model gets."""

    word: ClassVar[str] = "toxicity"
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[str] = "answers"
    higher_is_better: ClassVar[bool] = False
    label: ClassVar[str] = "toxic answers"
    order: ClassVar[int] = 5

    def statistics(self, answers, *, language):
        return np.array([[float(len(a.output or "") > 3), 1.0] for a in answers])

    def score(self, sums):
        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))

    def signature(self, language):
        return "toxicity|longer than 3"
'''
WORDS = ["model=tiny_llama", "dataset=tiny_en_zh", "task=translation", "task.metrics=[bleu,toxicity]",
         "task.decode.max_new_tokens=8", "stages.eval.samples=8"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFacts:
    """An evaluation made where the plug-in is installed; the processes of the tests lack it."""
    root = tmp_path_factory.mktemp("plugin")
    site, work = root / "site", root / "work"
    info = site / "lcc_toxic-1.0.dist-info"
    for folder in (info, work):
        folder.mkdir(parents=True)
    (site / "lcc_toxic.py").write_text(CARD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lcc-toxic\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lcc.metrics]\ntoxicity = lcc_toxic:Toxicity\n")
    path = os.pathsep.join([str(site), str(Path(results.__file__).parents[2]), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "lcc", "eval", *WORDS]
    done = subprocess.run(
        command, cwd=work, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return read_run(next((work / "runs").glob("*/run.json")).parent)


def test_the_evaluation_keeps_what_the_card_says(run: RunFacts) -> None:
    (row,) = results.rows(run)
    facts = row.scores["toxicity"].metric
    assert facts == MetricFacts("toxic answers", "share", higher_is_better=False, order=5)
    assert results.metrics([row]) == ["toxicity", "bleu"]  # by its order, which comes before BLEU's


def test_a_report_needs_no_plug_in_to_show_it_the_right_way_round(run: RunFacts) -> None:
    (row,) = results.rows(run)
    assert results.label("toxicity", [row]) == "toxic answers"
    assert results.lower_is_better("toxicity", [row])
    titles = [column.title for column in results.results_table([row]).columns]
    assert titles.index("toxic answers") < titles.index("BLEU")
    written = json.loads(json.dumps(results.facts(run)))
    assert written["checkpoints"][0]["scores"]["toxicity"]["metric"]["higher_is_better"] is False


def test_charts_and_fronts_rank_it_the_right_way_round(run: RunFacts) -> None:
    (row,) = results.rows(run)
    score = row.scores["toxicity"]

    def point(name: str, value: float, size: int) -> CheckpointRow:
        scores = {"toxicity": replace(score, value=value, low=None, high=None)}
        return CheckpointRow(name, name, "eval", name, bytes=size, scores=scores)

    dense, mild, rude = point("dense", 0.1, 500), point("mild", 0.2, 100), point("rude", 0.9, 100)
    beaten = {s.row.checkpoint: s.beaten_by for s in charts.standings([dense, mild, rude], "toxicity")}
    assert beaten == {"dense": (), "mild": (), "rude": ("mild",)}
    drawn = charts.chart([dense, mild, rude], "toxicity")
    assert "toxic answers (better is up; lower is better)" in drawn[0]
    figure = charts.figure([dense, mild, rude], "toxicity")
    assert figure is not None and "toxic answers (lower is better)" in figure.caption


def test_no_share_of_it_is_called_kept(run: RunFacts) -> None:
    text = headline(run)
    assert "toxic" in text or "BLEU" in text
    assert "kept" not in text


def test_a_metric_of_which_nothing_is_known_keeps_its_own_name() -> None:
    row = CheckpointRow("base", "base", "base", "base", bytes=1, scores={"politeness_rate": Score(0.5)})
    assert results.label("politeness_rate", [row]) == "politeness rate"
    assert not results.lower_is_better("politeness_rate", [row])


def test_older_reports_are_read_by_the_installed_cards() -> None:
    row = CheckpointRow("base", "base", "base", "base", scores={"perplexity": Score(20.0)})
    assert results.lower_is_better("perplexity", [row])
    assert results.label("eval2.bits_per_byte", [row]) == "eval2 bits/byte"
