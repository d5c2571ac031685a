"""The headline says what was gained and lost, and no more than was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sample_run import change_report

from lcc.reports.run import headline
from lcc.store.runs import read_run


def change_run(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def keep_steps(folder: Path, *names: str) -> None:
    steps = json.loads((folder / "run.json").read_text())["steps"]
    change_run(folder, steps=[s for s in steps if s["name"] in names])


def test_a_whole_run_tells_training_then_the_price_of_the_small_model(run_folder: Path) -> None:
    assert headline(read_run(run_folder)) == (
        "finetune takes BLEU from 21.6 to 37.4 (+15.8, 95 % interval +13.4 to +18.4: gained). "
        "quantize reaches 35.1 (93.9 % kept; −2.3, 95 % interval −3.9 to −0.5: unclear) with "
        "121 MB on disk, 21.2 % of base; 12.1 tokens/s (dequantized) where base has 11.2."
    )


def test_a_base_alone_claims_no_change(run_folder: Path) -> None:
    keep_steps(run_folder, "base", "eval.base")
    assert headline(read_run(run_folder)) == "base reaches BLEU 21.6 (18.5–25.0)."


def test_models_that_nobody_evaluated_claim_no_quality(run_folder: Path) -> None:
    keep_steps(run_folder, "base", "vocab")
    assert headline(read_run(run_folder)) == (
        "2 checkpoints were made and none was evaluated; vocab takes 244 MB."
    )


def test_compression_without_training_starts_from_the_base(run_folder: Path) -> None:
    keep_steps(run_folder, "base", "vocab", "eval.base", "eval.vocab")
    assert headline(read_run(run_folder)) == (
        "base reaches BLEU 21.6 (18.5–25.0). vocab reaches 21.5 (99.5 % kept; −0.1, 95 % interval "
        "−1.7 to +1.7: unclear) with 244 MB on disk, 42.8 % of base."
    )


def test_training_without_compression_is_one_sentence(run_folder: Path) -> None:
    keep_steps(
        run_folder, "base", "vocab", "finetune", "finetune.merged", "eval.base", "eval.vocab", "eval.finetune"
    )
    assert headline(read_run(run_folder)) == (
        "finetune takes BLEU from 21.6 to 37.4 (+15.8, 95 % interval +13.4 to +18.4: gained)."
    )


def test_no_share_is_kept_of_a_figure_where_lower_is_better(run_folder: Path) -> None:
    for index, name in enumerate(("base", "vocab", "finetune", "width", "heal", "quantize")):
        value = 1.3 - 0.1 * index
        measures = {"bits_per_byte": {"value": value, "unit": "bits"}}
        if index:
            measures |= {
                "bits_per_byte_delta_base": {"value": value - 1.3, "unit": "bits"},
                "bits_per_byte_delta_reference": {"value": 0.02, "unit": "bits"},
                "verdict": {"value": "kept", "unit": ""},
            }
        change_report(run_folder, f"eval.{name}", measures=measures)
    text = headline(read_run(run_folder))
    assert "finetune takes bits/byte from 1.300 to 1.100 (−0.200)" in text
    assert "quantize reaches 0.800 (+0.020: kept)" in text
    assert "% kept" not in text


def test_a_failed_run_says_so_first(run_folder: Path) -> None:
    change_run(run_folder, status="failed", error="step 'heal' failed: disk full.")
    assert headline(read_run(run_folder)) == "The run failed: step 'heal' failed: disk full."
