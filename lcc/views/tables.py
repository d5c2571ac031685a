"""The results as tables: every checkpoint with its quality, size and speed, in words of people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lcc.views import results, units
from lcc.views.document import Cell, Column, Table, Tone
from lcc.views.results import Delta, Row, Score

Draw = Callable[[Row], Cell]


def results_table(found: Sequence[Row], *, max_metrics: int | None = None) -> Table:
    """One row per checkpoint; a column that no row fills is left out."""
    columns = _columns(found, max_metrics)
    rows = [[Cell(units.clean(row.checkpoint)), *(draw(row) for _, draw in columns)]
            for row in found]  # fmt: skip
    titles = [Column("checkpoint", "name"), *(Column(title) for title, _ in columns)]
    return Table("Every checkpoint on the same samples; ranges are 95 % intervals.", titles, rows)


def speed_table(found: Sequence[Row]) -> Table:
    """Every line of the bench; columns that no line fills are left out."""
    lines = [(row, speed) for row in found for speed in row.speeds]
    candidates: list[tuple[str, list[str]]] = [
        ("backend", [units.clean(s.backend) for _, s in lines]),
        ("batch", [units.count(s.batch_size) for _, s in lines]),
        ("prefill tokens/s", [units.rate(s.prefill) for _, s in lines]),
        ("decode tokens/s", [units.rate(s.decode) for _, s in lines]),
        ("texts/s", [units.rate(s.texts) for _, s in lines]),
        ("latency p50", [units.duration(s.p50_seconds) for _, s in lines]),
        ("latency p99", [units.duration(s.p99_seconds) for _, s in lines]),
        ("peak memory", [units.size(s.peak_memory_bytes) for _, s in lines]),
    ]
    filled = [(title, texts) for title, texts in candidates if set(texts) - {"", units.MISSING}]
    rows = [[Cell(units.clean(row.checkpoint)), *(Cell(texts[i]) for _, texts in filled)]
            for i, (row, _) in enumerate(lines)]  # fmt: skip
    columns = [Column(t, "name" if t == "backend" else "figures") for t, _ in filled]
    return Table("Measured interleaved over all checkpoints, one fresh process each.",
                 [Column("checkpoint", "name"), *columns], rows)  # fmt: skip


def tone(verdict: str) -> Tone:
    """Whether a verdict is good news."""
    first = verdict.split(" ")[0].strip(":;,.").lower() if verdict else ""
    if first in results.GOOD_VERDICTS:
        return "good"
    return "bad" if first in results.BAD_VERDICTS else "unclear" if first else ""


def _columns(found: Sequence[Row], max_metrics: int | None) -> list[tuple[str, Draw]]:
    chosen = results.metrics(found)[:max_metrics]
    metric = results.primary(found)
    change = f"change of {results.label(metric)}" if metric else "change"
    candidates: list[tuple[str, Draw, bool]] = [
        ("parameters", lambda r: Cell(units.count(r.parameters)), any(r.parameters for r in found)),
        ("on disk", _size, any(r.bytes for r in found)),
        *((results.label(name), _metric(name), True) for name in chosen),
        (change, _change, any(r.to_reference or r.to_base for r in found)),
        ("decode tokens/s", lambda r: Cell(units.rate(r.speed.decode)),
         any(r.speed.decode for r in found)),
        ("texts/s", lambda r: Cell(units.rate(r.speed.texts)), any(r.speed.texts for r in found)),
        ("latency p50, p99", _latency, any(r.speed.p50_seconds for r in found)),
        ("peak memory", lambda r: Cell(units.size(r.speed.peak_memory_bytes)),
         any(r.speed.peak_memory_bytes for r in found)),
    ]  # fmt: skip
    return [(title, draw) for title, draw, filled in candidates if filled]


def _size(row: Row) -> Cell:
    return Cell(units.size(row.bytes), units.share(row.size_ratio) if row.size_ratio else "")


def _metric(name: str) -> Draw:
    def draw(row: Row) -> Cell:
        score = row.scores.get(name)
        return Cell(units.MISSING) if score is None else _score(score)

    return draw


def _score(score: Score) -> Cell:
    return Cell(units.score(score.value, score.unit),
                units.interval(score.low, score.high, score.unit))  # fmt: skip


def _change(row: Row) -> Cell:
    """Against the fine-tuned model where the row has one, else against the base."""
    delta = row.to_reference or row.to_base
    return Cell(units.MISSING) if delta is None else change(delta)


def change(delta: Delta) -> Cell:
    """A difference, its verdict, its interval and what it is a difference to."""
    score = delta.score
    verdict = delta.verdict.split(" ")[0].strip(":;,.") if delta.verdict else ""
    text = f"{units.score(score.value, score.unit, signed=True)} {verdict}".strip()
    low, high = score.low, score.high
    between = units.interval(low, high, score.unit, signed=True)
    return Cell(text, f"{between} vs {units.clean(delta.against)}".strip(), tone(delta.verdict))


def _latency(row: Row) -> Cell:
    speed = row.speed
    if speed.p50_seconds is None:
        return Cell(units.MISSING)
    return Cell(units.duration(speed.p50_seconds), units.duration(speed.p99_seconds))
