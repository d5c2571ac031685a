"""Rows hold what was measured, whatever the metrics are called."""

from __future__ import annotations

import json
from pathlib import Path

from sample_run import change_report, key_of

from lcc.reports import results
from lcc.store.runs import read_run


def test_every_checkpoint_has_a_row_in_the_order_it_was_made(run_folder: Path) -> None:
    rows = results.rows(read_run(run_folder))
    assert [r.checkpoint for r in rows] == ["base", "vocab", "finetune", "width", "heal", "quantize"]
    last = rows[-1]
    assert (last.parameters, last.bytes) == (97_100_000, 120_700_000)
    assert last.size_ratio == 120_700_000 / 570_400_000
    assert last.scores["bleu"].low == 32.0
    assert (last.speed.batch_size, last.speed.backend, last.speed.rate) == (1, "dequantized", 12.1)
    assert [s.backend for s in last.speeds] == ["dequantized", "compressed-tensors", "dequantized"]


def test_a_delta_names_the_checkpoint_it_was_measured_against(run_folder: Path) -> None:
    last = results.rows(read_run(run_folder))[-1]
    assert last.to_reference is not None and last.to_base is not None
    assert (last.to_reference.against, last.to_base.against) == ("finetune", "base")
    assert (last.to_reference.metric, last.to_reference.verdict) == ("bleu", "unclear")


def test_an_unheard_of_metric_becomes_a_column_by_its_interval(run_folder: Path) -> None:
    measures = {
        "kappa": {"value": 0.61, "unit": ""},
        "kappa_low": {"value": 0.55, "unit": ""},
        "kappa_high": {"value": 0.66, "unit": ""},
        "seen": {"value": 3, "unit": "count"},
        "accuracy": {"value": 0.86, "unit": "share"},
    }
    for name in ("base", "vocab", "finetune", "width", "heal", "quantize"):
        change_report(run_folder, f"eval.{name}", measures=measures)
    rows = results.rows(read_run(run_folder))
    assert results.metrics(rows) == ["accuracy", "kappa"]
    assert rows[0].scores["kappa"] == results.Score(0.61, "", 0.55, 0.66)
    assert results.primary(rows) == "accuracy"


def test_a_second_evaluation_does_not_overwrite_the_first(run_folder: Path) -> None:
    facts = json.loads((run_folder / "run.json").read_text())
    extra = {
        "name": "check.quantize",
        "kind": "eval",
        "key": key_of("check"),
        "status": "finished",
        "folder": "99-check.quantize",
    }
    facts["steps"].append(extra)
    (run_folder / "run.json").write_text(json.dumps(facts))
    artifact = run_folder.parent / "store" / key_of("check")
    artifact.mkdir()
    report = {
        "format": 1,
        "inputs": {"model": key_of("quantize")},
        "measures": {"bleu": {"value": 1.0, "unit": "BLEU"}},
    }
    (artifact / "report.json").write_text(json.dumps(report))
    last = results.rows(read_run(run_folder))[-1]
    assert (last.scores["bleu"].value, last.scores["check.bleu"].value) == (35.1, 1.0)
    assert results.label("check.bleu") == "check BLEU"


def test_facts_are_plain_json(run_folder: Path) -> None:
    facts = json.loads(json.dumps(results.facts(read_run(run_folder))))
    assert facts["checkpoints"][2]["scores"]["bleu"]["value"] == 37.4
    assert facts["steps"][2]["notes"] == [
        "17,013 of 262,144 tokens kept; 0.3 % of held-out tokens fall back."
    ]


def test_an_encoders_speed_is_texts_a_second(run_folder: Path) -> None:
    line = {"checkpoint": "base", "batch_size": 1, "texts_per_second": 31.0}
    change_report(run_folder, "bench", tables={"speed": [line]})
    speed = results.rows(read_run(run_folder))[0].speed
    assert (speed.rate, speed.unit, speed.decode) == (31.0, "texts/s", None)


def test_every_metric_keeps_its_own_verdict(run_folder: Path) -> None:
    measures = {
        "bleu": {"value": 30.0, "unit": "BLEU"},
        "chrf": {"value": 31.0, "unit": "chrF"},
        "bleu_delta_reference": {"value": -7.4, "unit": "BLEU"},
        "chrf_delta_reference": {"value": -0.1, "unit": "chrF"},
        "bleu_verdict_reference": {"value": "lost", "unit": ""},
        "chrf_verdict_reference": {"value": "kept", "unit": ""},
        "verdict": {"value": "lost", "unit": ""},
    }
    change_report(run_folder, "eval.quantize", measures=measures)
    last = results.rows(read_run(run_folder))[-1]
    assert {name: d.verdict for name, d in last.against_reference.items()} == {"bleu": "lost", "chrf": "kept"}
    assert last.against_base == {} and last.to_base is None
