"""Numbers read as people write them, and never claim more digits than they have."""

from __future__ import annotations

import pytest

from lcc.core import format


@pytest.mark.parametrize(
    "text, wanted",
    [
        (format.count(268_098_176), "268 M"),
        (format.count(9_700), "9.7 k"),
        (format.count(None), "–"),
        (format.size(536_000_000), "536 MB"),
        (format.size(1_200_000_000), "1.2 GB"),
        (format.size(12), "12 B"),
        (format.duration(0.0123), "12.3 ms"),
        (format.duration(402.7), "6 min 43 s"),
        (format.duration(7_380), "2 h 3 min"),
        (format.share(0.2431), "24.3 %"),
        (format.rate(1_279.6), "1,280"),
        (format.score(37.42, "BLEU"), "37.4"),
        (format.score(0.42, "BLEU"), "0.4"),
        (format.score(0.8642, "share"), "86.4 %"),
        (format.score(0.871, "bits"), "0.871"),
        (format.score(-2.31, "BLEU", signed=True), "−2.3"),
        (format.score(-0.04, "BLEU", signed=True), "−0.04"),
        (format.score(0.0, "BLEU", signed=True), "+0.0"),
        (format.interval(-3.9, 0.41, "BLEU", signed=True), "−3.9…+0.4"),
        (format.interval(0.84, 0.88, "share"), "84.0–88.0"),
        (format.interval(None, 1.0), ""),
        (format.quantity(14.5e9, "bytes/s"), "14.5 GB/s"),
        (format.quantity("kept", ""), "kept"),
        (format.quantity(3305, ""), "3,305"),
    ],
)
def test_a_number_reads_as_people_write_it(text: str, wanted: str) -> None:
    assert text == wanted


def test_what_could_steer_a_terminal_or_turn_text_around_is_taken_out() -> None:
    assert format.clean("a\x1b[31mb\x07\u202ec") == "a�[31mb��c"
    assert format.clean("中文,\u3000空格 é 👩\u200d🔬\n") == "中文,\u3000空格 é 👩\u200d🔬\n"
