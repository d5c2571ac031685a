"""The Markdown holds the same facts, and nobody's text becomes markup in it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from sample_run import change_report

from lcc import reports


def markdown_of(run: Path) -> str:
    reports.write_reports(run)
    return (run / "report.md").read_text(encoding="utf-8")


def test_every_row_of_a_table_has_as_many_cells_as_its_head(run_folder: Path) -> None:
    lines = markdown_of(run_folder).replace("\\|", "").splitlines()
    for before, line in pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert before.count("|") == line.count("|"), line


def test_results_and_samples_are_there(run_folder: Path) -> None:
    text = markdown_of(run_folder)
    assert "| quantize | 97.1 M | 121 MB (21.2 %) | 35.1 (32.0–38.5) |" in text
    assert "Displays the current page number \\| at this position." in text
    assert "选择要设置格式的单元格。" in text


def test_every_training_is_a_row_with_its_clipped_share(run_folder: Path) -> None:
    change_report(
        run_folder,
        "finetune",
        measures={
            "train_loss": {"value": 1.25, "unit": "nats"},
            "clip_threshold": {"value": 0.25, "unit": ""},
            "clipped_share": {"value": 0.003, "unit": "share"},
            "clipped_share_counts": {"value": "elements", "unit": ""},
            "clipped_steps_share": {"value": 0.5, "unit": "share"},
        },
    )
    text = markdown_of(run_folder)
    assert "| norm (threshold 0.25) | 0.3 % (of elements, in 50 % of steps) |" in text
    assert "| norm (threshold 0.5) | 37.5 % (of steps) |" in text


def test_a_models_output_becomes_neither_html_nor_link_nor_code(run_folder: Path) -> None:
    note = "<b>x</b> [a](https://x.example) `code` *bold* | cell\n# head"
    change_report(run_folder, "width", notes=[note])
    text = markdown_of(run_folder)
    assert "<script>" not in text and "<b>" not in text
    assert (
        "- width: &lt;b&gt;x&lt;/b&gt; \\[a\\](https&#58;//x.example) \\`code\\` \\*bold\\* "
        "\\| cell \\# head\n"
    ) in text


def test_settings_cannot_close_their_own_fence(run_folder: Path) -> None:
    change_report(run_folder, "width", node={"criterion": "```\n# not a heading"})
    assert "````\ncriterion: ```\n# not a heading\n````" in markdown_of(run_folder)
