"""Monitoring report of a stream of classified texts: classes, trend, alerts, the sentences behind them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lcc.core import format
from lcc.reports.document import (
    Block,
    Bullets,
    Cell,
    Column,
    Document,
    Figure,
    Figures,
    Prose,
    Section,
    Table,
)
from lcc.reports.svg import BOTTOM, LEFT, RIGHT, TOP, AxisScale, Drawing

WIDTH, HEIGHT = 640, 260
SHOWN = 12  # texts of a list
CHANCE = 0.01  # an alert is what luck alone would bring less often


@dataclass(frozen=True)
class LabelledText:
    """One text and its class; `time` as the input gave it."""

    text: str
    label: str
    time: str = ""


@dataclass(frozen=True)
class Alert:
    """In one window, `hits` of `num` texts are of the watched class, where `usual` was the share.

    `chance` is how likely so many are if the share is still the usual one.
    """

    first: int
    num: int
    hits: int
    usual: float
    chance: float

    @property
    def last(self) -> int:
        return self.first + self.num - 1


def alerts(predictions: Sequence[LabelledText], watched: str, window: int) -> list[Alert]:
    """Windows whose share of `watched` is above that of all texts before them, beyond luck.

    Windows follow each other without overlap, and the first only says what is usual; the last one
    may be still filling, from half of it on.
    """
    raised = []
    hits = [one.label == watched for one in predictions]
    for start in range(window, len(predictions), window):
        here = hits[start : start + window]
        if len(here) < window / 2:
            break
        # One more of each: before a class was ever seen it is rare, not impossible.
        usual = (sum(hits[:start]) + 1) / (start + 2)
        chance = at_least(sum(here), len(here), usual)
        if chance < CHANCE and sum(here) / len(here) > usual:
            raised.append(Alert(start + 1, len(here), sum(here), usual, chance))
    return raised


def at_least(hits: int, num: int, share: float) -> float:
    """Probability of `hits` or more of `num` where each comes with probability `share`."""
    return min(
        1.0, sum(math.comb(num, k) * share**k * (1 - share) ** (num - k) for k in range(hits, num + 1))
    )


def monitor(predictions: Sequence[LabelledText], *, watched: str, window: int, name: str) -> Document:
    """The report over everything seen so far; `window` texts make one point of the trend."""
    raised = alerts(predictions, watched, window)
    parts: list[tuple[str, list[Block]]] = [
        ("Alerts", list(_alert_blocks(predictions, raised, watched))),
        ("Classes", [_classes(predictions, window)] if predictions else []),
        ("Trend", list(_trend(predictions, watched, window))),
        (f"Latest {watched}", list(_latest([t for t in predictions if t.label == watched]))),
        ("Latest", list(_latest(predictions))),
    ]
    sections = [Section(title, blocks) for title, blocks in parts if blocks]
    last = f", the last from {predictions[-1].time}" if predictions and predictions[-1].time else ""
    subtitle = f"{len(predictions):,} texts{last}"
    return Document(
        format.clean(name), format.clean(subtitle), _headline(predictions, raised, watched, window), sections
    )


def _headline(predictions: Sequence[LabelledText], raised: Sequence[Alert], watched: str, window: int) -> str:
    if not predictions:
        return "Nothing was read yet."
    recent = predictions[-window:]
    sentence = (
        f"{_share(recent, watched)} of the last {len(recent)} texts are {watched}, "
        f"{_share(predictions, watched)} of all {len(predictions):,}."
    )
    now = raised and raised[-1].last > len(predictions) - window
    return format.clean(("Alert: " if now else "") + sentence)


def _alert_blocks(
    predictions: Sequence[LabelledText], raised: Sequence[Alert], watched: str
) -> Iterator[Block]:
    if not raised:
        yield Prose("None.")
        return
    for one in reversed(raised):
        when = _between(predictions[one.first - 1 : one.last])
        yield Prose(
            format.clean(
                f"Texts {one.first:,} to {one.last:,}{when}: {one.hits} of {one.num} are {watched} "
                f"({format.share(one.hits / one.num)}), before them {format.share(one.usual)} were; so "
                f"many by luck: {_chance(one.chance)}."
            ),
            tone="bad",
        )
        behind = [t for t in predictions[one.first - 1 : one.last] if t.label == watched]
        yield Bullets([_line(t) for t in behind[:SHOWN]])


def _classes(predictions: Sequence[LabelledText], window: int) -> Table:
    recent = predictions[-window:]
    counts, latest = Counter(t.label for t in predictions), Counter(t.label for t in recent)
    columns = [
        Column("class", "name"),
        Column("all"),
        Column("share"),
        Column(f"of the last {len(recent)}"),
        Column("change"),
    ]
    rows = []
    for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        share, now = count / len(predictions), latest[label] / len(recent)
        rows.append(
            [
                Cell(format.clean(label)),
                Cell(f"{count:,}"),
                Cell(format.share(share)),
                Cell(format.share(now)),
                Cell(format.score(now - share, "share", signed=True)),
            ]
        )
    return Table("Classes of all texts, and of the latest ones.", columns, rows)


def _trend(predictions: Sequence[LabelledText], watched: str, window: int) -> Iterator[Block]:
    points: list[tuple[int, float]] = []
    for start in range(0, len(predictions), window):
        here = predictions[start : start + window]
        if len(here) == window or not points:
            points.append((start + len(here), sum(t.label == watched for t in here) / len(here)))
    if len(points) < 2:
        return
    caption = (
        f"Share of {watched} in each {window} texts, from {format.share(points[0][1])} to "
        f"{format.share(points[-1][1])}."
    )
    drawing = Drawing(WIDTH, HEIGHT, f"Share of {watched}", caption)
    x = AxisScale(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT)
    y = AxisScale(0, 1, HEIGHT - BOTTOM, TOP)
    drawing.upward(y, "share")
    drawing.across(x, "text", whole=True)
    drawing.line([(x(at), y(share)) for at, share in points], "curve")
    for at, share in points:
        drawing.dot(x(at), y(share), radius=3, style="second", title=format.share(share))
    yield Figures([Figure(drawing.render(), format.clean(caption))])
    yield Bullets(
        [f"texts {at - window + 1:,} to {at:,}: {format.share(share)}" for at, share in points[-SHOWN:]]
    )


def _latest(predictions: Sequence[LabelledText]) -> Iterator[Block]:
    if predictions:
        rows = [
            [Cell(format.clean(t.time or "–")), Cell(format.clean(t.label)), Cell(format.clean(t.text))]
            for t in predictions[: -SHOWN - 1 : -1]
        ]
        columns = [Column("time", "name"), Column("class", "prose"), Column("text", "prose")]
        yield Table("The newest first.", columns, rows)


def _line(prediction: LabelledText) -> str:
    return format.clean(f"{prediction.time} {prediction.text}".strip())


def _between(predictions: Sequence[LabelledText]) -> str:
    first, last = predictions[0].time, predictions[-1].time
    return f" ({first} to {last})" if first and last else ""


def _share(predictions: Sequence[LabelledText], watched: str) -> str:
    return format.share(sum(t.label == watched for t in predictions) / len(predictions))


def _chance(value: float) -> str:
    return "less than 0.01 %" if value < 1e-4 else format.share(value)
