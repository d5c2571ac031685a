"""Report of a run: what came out, what it looks like, how it was made, how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lcc.core import format
from lcc.reports import charts, results
from lcc.reports import charts as pareto
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
from lcc.reports.results import CheckpointRow, Delta, Score, change, results_table, speed_table
from lcc.reports.run_details import lineage, machines, remarks, reproduction, settings, steps, training_table
from lcc.store.runs import RunFacts, RunStep

# What a run gained and lost, in one or two sentences that claim no more than was measured.


def headline(run: RunFacts) -> str:
    """The run in a sentence: quality before and after, then the price of the smallest model."""
    checkpoints = results.rows(run)
    if run.status == "failed":
        return format.clean(f"The run failed: {run.error or 'see the steps below'}")
    if run.status == "preempted":
        return format.clean(f"The run was stopped and can go on: {run.error}")
    metric = results.primary(checkpoints)
    judged = [row for row in checkpoints if metric in row.scores]
    if metric is None or not judged:
        return _unjudged(checkpoints)
    sentences = [_first(judged, metric), _last(judged, metric)]
    return format.clean(" ".join(s for s in sentences if s))


def _unjudged(checkpoints: Sequence[CheckpointRow]) -> str:
    if not checkpoints:
        return "No checkpoint has been made yet."
    last = checkpoints[-1]
    weight = f"; {last.checkpoint} takes {format.size(last.bytes)}" if last.bytes else ""
    what = "1 checkpoint was" if len(checkpoints) == 1 else f"{len(checkpoints)} checkpoints were"
    return f"{what} made and none was evaluated{weight}."


def _first(judged: Sequence[CheckpointRow], metric: str) -> str:
    """What training did, or where the run starts from when nothing was trained."""
    tuned, name = _tuned(judged), results.label(metric, judged)
    if tuned is None or tuned.to_base is None:
        row = tuned or judged[0]
        return f"{row.checkpoint} reaches {name} {_figure(row.scores[metric])}."
    delta = tuned.to_base
    before = next((r for r in judged if r.checkpoint == delta.against), judged[0])
    at = f"{name} from {_value(before.scores[metric])} to {_value(tuned.scores[metric])}"
    return f"{tuned.checkpoint} takes {at} ({_change(delta)})."


def _tuned(judged: Sequence[CheckpointRow]) -> CheckpointRow | None:
    """The fine-tuned model: what the last one is judged against, or else the first trained one."""
    trained = [row for row in judged if row.trained]
    against = judged[-1].to_reference.against if judged[-1].to_reference else None
    return next((r for r in trained if r.checkpoint == against), trained[0] if trained else None)


def _last(judged: Sequence[CheckpointRow], metric: str) -> str:
    """What compression kept, and for how many bytes."""
    tuned, last = _tuned(judged), judged[-1]
    if last is tuned or last is judged[0]:
        return ""
    delta = last.to_reference or last.to_base
    kept = f"{last.checkpoint} reaches {_value(last.scores[metric])}"
    if delta is not None:
        before = next((r for r in judged if r.checkpoint == delta.against), None)
        share = _kept(last, before, metric) if before else ""
        kept += f" ({share}{_change(delta)})"
    if last.size_ratio is None or last.size_ratio >= 1:
        return f"{kept}{_speed(judged[0], last)}."
    return (
        f"{kept} with {format.size(last.bytes)} on disk, {format.share(last.size_ratio)} of "
        f"{judged[0].checkpoint}{_speed(judged[0], last)}."
    )


def _kept(last: CheckpointRow, before: CheckpointRow, metric: str) -> str:
    """The share kept, for figures whose zero means nothing is left and that did not grow."""
    now, then = last.scores[metric].value, before.scores[metric].value
    if results.lower_is_better(metric, [last, before]) or not 0 <= now <= then:
        return ""
    return f"{format.share(now / then)} kept; " if then else ""


def _speed(first: CheckpointRow, last: CheckpointRow) -> str:
    """Speeds side by side; weights run in another form than stored are named as such."""
    before, after = first.speed.rate, last.speed.rate
    if not before or not after:
        return ""
    usual = last.speed.backend in ("", "dense", "as stored")
    backend = "" if usual else last.speed.backend
    form = f" ({backend})" if backend else ""
    return (
        f"; {format.rate(after)} {last.speed.unit}{form} where {first.checkpoint} has {format.rate(before)}"
    )


def _change(delta: Delta) -> str:
    score = delta.score
    between = format.interval(score.low, score.high, score.unit, signed=True).replace("…", " to ")
    figure = format.score(score.value, score.unit, signed=True)
    text = f"{figure}, 95 % interval {between}" if between else figure
    return f"{text}: {delta.verdict}" if delta.verdict else text


def _figure(score: Score) -> str:
    between = format.interval(score.low, score.high, score.unit)
    return f"{_value(score)} ({between})" if between else _value(score)


def _value(score: Score) -> str:
    return format.score(score.value, score.unit)


# What answers without any model, and whether each checkpoint beats it, on the same samples.


def baseline_table(run: RunFacts) -> Table | None:
    """The baseline's own scores, then every checkpoint's difference to it; None without one."""
    tables = [(step, step.report.tables.get("baseline", [])) for step in run.of_kind("eval") if step.report]
    judged = [(step, lines) for step, lines in tables if lines]
    if not judged:
        return None
    first, lines = judged[0]
    name, table = str(lines[0].get("baseline")), results.rows(run)
    columns = [Column("", "name"), *(Column(results.label(str(one["metric"]), table)) for one in lines)]
    own = [Cell(format.clean(name)), *(_own(one) for one in lines)]
    rows = [own, *([_name(run, step), *(_difference(one, name) for one in each)] for step, each in judged)]
    baseline = first.report.word("baseline") if first.report else ""
    return Table(
        f"Baseline, {baseline}, and every checkpoint's difference to it on the same samples, "
        "with 95 % intervals of a paired bootstrap.",
        columns,
        rows,
    )


def _name(run: RunFacts, step: RunStep) -> Cell:
    return Cell(format.clean(results.checkpoint_of(run, step)))


def _own(line: dict[str, Any]) -> Cell:
    unit = str(line.get("unit") or "")
    return Cell(format.score(line["value"], unit), format.interval(line["low"], line["high"], unit))


def _difference(line: dict[str, Any], name: str) -> Cell:
    score = Score(line["delta"], str(line.get("unit") or ""), line["delta_low"], line["delta_high"])
    return change(Delta(str(line["metric"]), name, score, str(line["verdict"])))


# What a sensitivity step found, as one table: parts down, actions across.


def sensitivity_table(rows: Sequence[dict[str, Any]]) -> Table:
    """KL to the whole model for every part and action, and below it the bytes it saves."""
    actions = list(dict.fromkeys(str(row["action"]) for row in rows))
    cells = {(row["part"], row["action"]): row for row in rows}
    parts = list(dict.fromkeys(str(row["part"]) for row in rows))
    lines = [[Cell(format.clean(part)), *(_cell(cells.get((part, a))) for a in actions)] for part in parts]
    caption = (
        "Mean KL to the model as it is, in nats, when one part alone is changed; below it the"
        " change of its bytes."
    )
    columns = [Column("part", "name"), *(Column(format.clean(a)) for a in actions)]
    return Table(caption, columns, lines)


def _cell(row: dict[str, Any] | None) -> Cell:
    if row is None or row["kl"] is None:
        return Cell(format.MISSING)
    change = row["bytes"]
    sign = "" if not change else format.MINUS if change < 0 else "+"
    return Cell(_nats(row["kl"]), f"{sign}{format.size(abs(change))}")


def _nats(kl: float) -> str:
    """KLs lie orders of magnitude apart: two significant figures, or in powers of ten."""
    return f"{kl:.2g}" if kl >= 1e-4 or kl == 0 else f"{kl:.1e}"


NUM_SAMPLES = 8


def story(run: RunFacts) -> Document:
    """The whole report of `run`."""
    parts = [
        ("Results", _results(run)),
        ("Sensitivity", _sensitivity(run)),
        ("Notes", remarks(run)),
        ("Training", _training(run)),
        ("Samples", _samples(run)),
        ("Lineage", lineage(run)),
        ("Steps", steps(run)),
        ("Settings", settings(run)),
        ("Reproduce", reproduction(run)),
        ("Machine and versions", machines(run)),
    ]
    drawn = [(title, list(blocks)) for title, blocks in parts]
    sections = [Section(title, blocks) for title, blocks in drawn if blocks]
    recipe = format.clean(run.facts.get("recipe_name") or run.name)
    started = format.clean(run.facts.get("started") or "").replace("T", " ").removesuffix("Z")
    when = f"{started} UTC · " if started else ""
    took = format.duration(run.facts.get("seconds"))
    subtitle = f"{when}{run.name} · {run.status} · {took}"
    return Document(recipe, format.clean(subtitle), headline(run), sections)


def _results(run: RunFacts) -> Iterator[Block]:
    checkpoints = results.rows(run)
    metric = results.primary(checkpoints)
    is_sweep = run.facts.get("verb") == "sweep" and metric is not None
    if checkpoints:
        yield pareto.sweep_table(checkpoints, str(metric)) if is_sweep else results_table(checkpoints)
    if metric is not None:
        draw = pareto.figure if is_sweep else charts.tradeoff
        figure = draw(checkpoints, metric)
        yield from [Figures([figure])] if figure else []
    beside = baseline_table(run)
    yield from [beside] if beside else []
    yield from _verdicts(checkpoints)
    yield from _protocol(run)
    if any(row.speeds for row in checkpoints):
        yield speed_table(checkpoints)
        yield from _machine_speed(run)


def _verdicts(checkpoints: list[results.CheckpointRow]) -> Iterator[Block]:
    """Every metric's differences, since the main table has room for one."""
    to_base = {row.checkpoint: row.against_base for row in checkpoints if row.against_base}
    to_reference = {row.checkpoint: row.against_reference for row in checkpoints if row.against_reference}
    if to_reference:
        yield _differences("the model before compression", to_reference, checkpoints)
    if to_base and [*_against(to_base)] != [*_against(to_reference)]:
        yield _differences("the first model", to_base, checkpoints)


def _against(table: dict[str, dict[str, Delta]]) -> Iterator[str]:
    return (delta.against for deltas in table.values() for delta in deltas.values())


def _differences(
    what: str, table: dict[str, dict[str, Delta]], scored: Sequence[results.CheckpointRow]
) -> Table:
    names = list(dict.fromkeys(name for deltas in table.values() for name in deltas))
    rows = [
        [
            Cell(format.clean(checkpoint)),
            *(change(deltas[n]) if n in deltas else Cell(format.MISSING) for n in names),
        ]
        for checkpoint, deltas in table.items()
    ]
    columns = [Column("checkpoint", "name"), *(Column(results.label(name, scored)) for name in names)]
    return Table(
        f"Differences to {what}, on the same samples, with 95 % intervals of a paired bootstrap.",
        columns,
        rows,
    )


def _protocol(run: RunFacts) -> Iterator[Block]:
    """How quality was measured: whatever the evaluations say beside their figures."""
    by_name: dict[str, dict[str, list[str]]] = {}
    for step in run.of_kind("eval"):
        assert step.report is not None, step.name
        shown = results.scores(step.report)
        for name, measure in step.report.measures.items():
            if name not in shown and not results.is_side(name) and measure.value is not None:
                text = format.quantity(measure.value, measure.unit)
                by_value = by_name.setdefault(name, {})
                by_value.setdefault(text, []).append(results.checkpoint_of(run, step))
    if by_name:
        yield Prose("How quality was measured:")
        yield Bullets([_measure_line(name, by_value) for name, by_value in by_name.items()])


def _measure_line(name: str, by_value: dict[str, list[str]]) -> str:
    """`shots: 2 (base), 0 (finetune, heal)`; one value alone needs no names."""
    label = name.removeprefix("num_").replace("_", " ")
    if len(by_value) == 1:
        return format.clean(f"{label}: {next(iter(by_value))}")
    parts = [f"{text} ({', '.join(names)})" for text, names in by_value.items()]
    return format.clean(f"{label}: {', '.join(parts)}")


def _machine_speed(run: RunFacts) -> Iterator[Block]:
    for bench in run.of_kind("bench"):
        assert bench.report is not None, bench.name
        facts = [
            f"{name.replace('_', ' ')} {format.quantity(m.value, m.unit)}"
            for name, m in bench.report.measures.items()
            if m.value is not None
        ]
        if facts:
            yield Prose(format.clean(f"The machine itself: {', '.join(facts)}."))


def _sensitivity(run: RunFacts) -> Iterator[Block]:
    for step in run.of_kind("sensitivity"):
        assert step.report is not None, step.name
        yield sensitivity_table(step.report.tables.get("sensitivity", []))


def _training(run: RunFacts) -> Iterator[Block]:
    table = training_table(run)
    yield from [table] if table else []
    for step in run.steps:
        curve = step.report.curve() if step.report else []
        counts = (step.report.word("clipped_share_counts") if step.report else "") or "steps"
        drawn = [charts.loss_curve(curve, step.name), charts.norm_curve(curve, step.name, counts=counts)]
        figures: list[Figure] = [figure for figure in drawn if figure is not None]
        if figures:
            yield Figures(figures)


def _samples(run: RunFacts) -> Iterator[Block]:
    """The first samples with the outputs of the first, the reference and the last model."""
    chosen = _shown_samples(run)
    if not chosen:
        return
    outputs = {name: {str(s.get("id")): s for s in rows} for name, rows in chosen.items()}
    first = next(iter(outputs.values()))
    rows = [
        [
            Cell(_sample_text(sample.get("source"))),
            Cell(_sample_text(sample.get("reference"))),
            *(Cell(_sample_text(by_id.get(identity, {}).get("output"))) for by_id in outputs.values()),
        ]
        for identity, sample in list(first.items())[:NUM_SAMPLES]
    ]
    titles = ["source", "reference", *map(format.clean, outputs)]
    if rows:
        yield Table(
            "The first samples of the test split, as every model answers them.",
            [Column(title, "prose") for title in titles],
            rows,
        )


def _shown_samples(run: RunFacts) -> dict[str, list[dict[str, object]]]:
    """Samples of the checkpoints worth reading side by side: base, fine-tuned, compressed."""
    judged = {results.checkpoint_of(run, e): e for e in run.of_kind("eval")}
    names = list(judged)
    if not names:
        return {}
    last = next((r for r in results.rows(run) if r.checkpoint == names[-1]), None)
    middle = last.to_reference.against if last and last.to_reference else names[-1]
    wanted = [name for name in dict.fromkeys([names[0], middle, names[-1]]) if name in judged]
    reports = {name: judged[name].report for name in wanted}
    samples = {name: list(report.samples()) for name, report in reports.items() if report}
    return {name: rows for name, rows in samples.items() if rows}


def _sample_text(text: object) -> str:
    if isinstance(text, dict):
        text = "\n".join(str(value) for value in text.values())
    return format.clean(text if text not in (None, "") else "(empty)")
