"""A stream of classes: what raises an alert, and what a reader is shown of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lcc.cli.commands._monitor import Monitor, Report, monitored
from lcc.core.errors import RecipeError
from lcc.reports import render
from lcc.reports.monitor import LabelledText, alerts, at_least, monitor


def stream(*shares: float, num: int = 40) -> list[LabelledText]:
    """`num` texts for each share of negative ones, evenly spread."""
    found = []
    for part, share in enumerate(shares):
        for i in range(num):
            bad = int((i + 1) * share) > int(i * share)
            label = "negative" if bad else "neutral"
            found.append(LabelledText(f"text {part}-{i} <b>", label, f"10:{part:02}"))
    return found


def test_a_rise_beyond_luck_raises_an_alert_and_noise_does_not() -> None:
    (one,) = alerts(stream(0.2, 0.2, 0.6), "negative", 40)
    assert (one.first, one.last, one.hits) == (81, 120, 24)
    assert one.usual == pytest.approx(17 / 82) and one.chance < 1e-6
    assert alerts(stream(0.2, 0.25, 0.3), "negative", 40) == []
    assert alerts(stream(0.9), "negative", 40) == []  # the first only says what is usual
    assert alerts(stream(0.5, 0.0), "negative", 40) == []


def test_a_window_may_raise_an_alert_when_it_is_half_full() -> None:
    found = stream(0.1, 0.1) + stream(1.0)[:20]
    assert [one.num for one in alerts(found, "negative", 40)] == [20]
    assert alerts(found[:-1], "negative", 40) == []


def test_the_chance_is_the_binomial_tail() -> None:
    slow = sum(math.comb(9, k) * 0.3**k * 0.7 ** (9 - k) for k in range(4, 10))
    assert at_least(4, 9, 0.3) == pytest.approx(slow)
    assert at_least(0, 9, 0.3) == pytest.approx(1.0)


def test_the_report_says_what_happened_and_shows_the_sentences() -> None:
    page = monitor(stream(0.2, 0.2, 0.6), watched="negative", window=40, name="told")
    assert page.headline == "Alert: 60 % of the last 40 texts are negative, 33.3 % of all 120."
    text, shown = render.to_markdown(page), render.to_html(page)
    assert "Texts 81 to 120 (10:02 to 10:02): 24 of 40 are negative (60 %)" in text
    assert "text 2\\-1" in text or "text 2-1" in text
    assert "<b>" not in shown.replace("<body>", "") and "<svg" in shown
    assert [section.title for section in page.sections] == [
        "Alerts",
        "Classes",
        "Trend",
        "Latest negative",
        "Latest",
    ]


def test_nothing_read_is_said_so() -> None:
    page = monitor([], watched="negative", window=40, name="told")
    assert page.headline == "Nothing was read yet." and "None." in render.to_markdown(page)


def test_the_report_follows_a_growing_output(tmp_path: Path) -> None:
    output, path = tmp_path / "told.jsonl", tmp_path / "monitor.md"
    watching = Monitor(Report(path=str(path), field="text"), output)
    watching.refresh()
    assert "Nothing was read yet" in path.read_text()
    line = json.dumps({"id": "1", "time": "10:00", "text": "Rates rise.", "output": "negative"})
    output.write_text(f"{line}\n{line[:20]}")
    watching.refresh()
    assert len(watching.texts) == 1 and "Rates rise" in path.read_text()
    output.write_text(f"{line}\n{line}\n")
    with monitored(watching.report, output):
        pass
    watching.refresh()
    assert len(watching.texts) == 2 and "2 texts" in path.read_text()


def test_a_report_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"must end in .html or .md"):
        Report(path="monitor.txt", field="text")
