"""What a run gained and lost, in one or two sentences that claim no more than was measured."""

from __future__ import annotations

from collections.abc import Sequence

from lcc.core.report import Run
from lcc.views import results, units
from lcc.views.results import Delta, Row, Score


def headline(run: Run) -> str:
    """The run in a sentence: quality before and after, then the price of the smallest model."""
    found = results.rows(run)
    if run.status == "failed":
        return units.clean(f"The run failed: {run.error or 'see the steps below'}")
    if run.status == "preempted":
        return units.clean(f"The run was stopped and can go on: {run.error}")
    metric = results.primary(found)
    judged = [row for row in found if metric in row.scores]
    if metric is None or not judged:
        return _unjudged(found)
    sentences = [_first(judged, metric), _last(judged, metric)]
    return units.clean(" ".join(s for s in sentences if s))


def _unjudged(found: Sequence[Row]) -> str:
    if not found:
        return "No checkpoint has been made yet."
    last = found[-1]
    weight = f"; {last.checkpoint} takes {units.size(last.bytes)}" if last.bytes else ""
    what = "1 checkpoint was" if len(found) == 1 else f"{len(found)} checkpoints were"
    return f"{what} made and none was evaluated{weight}."


def _first(judged: Sequence[Row], metric: str) -> str:
    """What training did, or where the run starts from when nothing was trained."""
    tuned, name = _tuned(judged), results.label(metric)
    if tuned is None or tuned.to_base is None:
        row = tuned or judged[0]
        return f"{row.checkpoint} reaches {name} {_figure(row.scores[metric])}."
    delta = tuned.to_base
    before = next((r for r in judged if r.checkpoint == delta.against), judged[0])
    at = f"{name} from {_value(before.scores[metric])} to {_value(tuned.scores[metric])}"
    return f"{tuned.checkpoint} takes {at} ({_change(delta)})."


def _tuned(judged: Sequence[Row]) -> Row | None:
    """The fine-tuned model: what the last one is judged against, or else the first trained one."""
    trained = [row for row in judged if row.trained]
    against = judged[-1].to_reference.against if judged[-1].to_reference else None
    return next((r for r in trained if r.checkpoint == against), trained[0] if trained else None)


def _last(judged: Sequence[Row], metric: str) -> str:
    """What compression kept, and for how many bytes."""
    tuned, last = _tuned(judged), judged[-1]
    if last is tuned or last is judged[0]:
        return ""
    delta = last.to_reference or last.to_base
    kept = f"{last.checkpoint} reaches {_value(last.scores[metric])}"
    if delta is not None:
        before = next((r for r in judged if r.checkpoint == delta.against), None)
        share = _kept(last.scores[metric], before.scores[metric], metric) if before else ""
        kept += f" ({share}{_change(delta)})"
    if last.size_ratio is None or last.size_ratio >= 1:
        return f"{kept}{_speed(judged[0], last)}."
    return (f"{kept} with {units.size(last.bytes)} on disk, {units.share(last.size_ratio)} of "
            f"{judged[0].checkpoint}{_speed(judged[0], last)}.")  # fmt: skip


def _kept(last: Score, before: Score, metric: str) -> str:
    """The share kept, for figures whose zero means nothing is left and that did not grow."""
    if results.lower_is_better(metric) or not 0 <= last.value <= before.value:
        return ""
    return f"{units.share(last.value / before.value)} kept; " if before.value else ""


def _speed(first: Row, last: Row) -> str:
    """Speeds side by side; weights run in another form than stored are named as such."""
    before, after = first.speed.rate, last.speed.rate
    if not before or not after:
        return ""
    usual = last.speed.backend in ("", "dense", "as stored")
    backend = "" if usual else last.speed.backend
    form = f" ({backend})" if backend else ""
    return f"; {units.rate(after)} {last.speed.unit}{form} where {first.checkpoint} has " \
           f"{units.rate(before)}"  # fmt: skip


def _change(delta: Delta) -> str:
    score = delta.score
    between = units.interval(score.low, score.high, score.unit, signed=True).replace("…", " to ")
    figure = units.score(score.value, score.unit, signed=True)
    text = f"{figure}, 95 % interval {between}" if between else figure
    return f"{text}: {delta.verdict}" if delta.verdict else text


def _figure(score: Score) -> str:
    between = units.interval(score.low, score.high, score.unit)
    return f"{_value(score)} ({between})" if between else _value(score)


def _value(score: Score) -> str:
    return units.score(score.value, score.unit)
