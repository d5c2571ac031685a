"""A run told in order: what came out, what it looks like, how it was made, how to make it again."""

from __future__ import annotations

from collections.abc import Iterator

from lcc.core.report import Run
from lcc.views import charts, pareto, results, units
from lcc.views.baselines import baseline_table
from lcc.views.details import lineage, machines, remarks, reproduction, settings, steps
from lcc.views.document import (
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
from lcc.views.headline import headline
from lcc.views.results import Delta
from lcc.views.sensitivity import sensitivity_table
from lcc.views.tables import change, results_table, speed_table
from lcc.views.training import training_table

NUM_SAMPLES = 8


def story(run: Run) -> Document:
    """The whole report of `run`."""
    parts = [("Results", _results(run)), ("Sensitivity", _sensitivity(run)),
             ("Notes", remarks(run)), ("Training", _training(run)),
             ("Samples", _samples(run)), ("Lineage", lineage(run)), ("Steps", steps(run)),
             ("Settings", settings(run)), ("Reproduce", reproduction(run)),
             ("Machine and versions", machines(run))]  # fmt: skip
    drawn = [(title, list(blocks)) for title, blocks in parts]
    sections = [Section(title, blocks) for title, blocks in drawn if blocks]
    recipe = units.clean(run.facts.get("recipe_name") or run.name)
    started = units.clean(run.facts.get("started") or "").replace("T", " ").removesuffix("Z")
    when = f"{started} UTC · " if started else ""
    took = units.duration(run.facts.get("seconds"))
    subtitle = f"{when}{run.name} · {run.status} · {took}"
    return Document(recipe, units.clean(subtitle), headline(run), sections)


def _results(run: Run) -> Iterator[Block]:
    found = results.rows(run)
    metric = results.primary(found)
    is_sweep = run.facts.get("verb") == "sweep" and metric is not None
    if found:
        yield pareto.sweep_table(found, str(metric)) if is_sweep else results_table(found)
    if metric is not None:
        draw = pareto.figure if is_sweep else charts.tradeoff
        figure = draw(found, metric)
        yield from [Figures([figure])] if figure else []
    beside = baseline_table(run)
    yield from [beside] if beside else []
    yield from _verdicts(found)
    yield from _protocol(run)
    if any(row.speeds for row in found):
        yield speed_table(found)
        yield from _machine_speed(run)


def _verdicts(found: list[results.Row]) -> Iterator[Block]:
    """Every metric's differences, since the main table has room for one."""
    to_base = {row.checkpoint: row.against_base for row in found if row.against_base}
    to_reference = {row.checkpoint: row.against_reference for row in found if row.against_reference}
    if to_reference:
        yield _differences("the model before compression", to_reference)
    if to_base and [*_against(to_base)] != [*_against(to_reference)]:
        yield _differences("the first model", to_base)


def _against(table: dict[str, dict[str, Delta]]) -> Iterator[str]:
    return (delta.against for deltas in table.values() for delta in deltas.values())


def _differences(what: str, table: dict[str, dict[str, Delta]]) -> Table:
    names = list(dict.fromkeys(name for deltas in table.values() for name in deltas))
    rows = [[Cell(units.clean(checkpoint)),
             *(change(deltas[n]) if n in deltas else Cell(units.MISSING) for n in names)]
            for checkpoint, deltas in table.items()]  # fmt: skip
    columns = [Column("checkpoint", "name"), *(Column(results.label(name)) for name in names)]
    return Table(f"Differences to {what}, on the same samples, with 95 % intervals of a paired "
                 "bootstrap.", columns, rows)  # fmt: skip


def _protocol(run: Run) -> Iterator[Block]:
    """How quality was measured: whatever the evaluations say beside their figures."""
    said: dict[str, dict[str, list[str]]] = {}
    for step in run.of_kind("eval"):
        assert step.report is not None, step.name
        shown = results.scores(step.report)
        for name, measure in step.report.measures.items():
            if name not in shown and not results.is_side(name) and measure.value is not None:
                text = units.quantity(measure.value, measure.unit)
                by_value = said.setdefault(name, {})
                by_value.setdefault(text, []).append(results.checkpoint_of(run, step))
    if said:
        yield Prose("How quality was measured:")
        yield Bullets([_told(name, by_value) for name, by_value in said.items()])


def _told(name: str, by_value: dict[str, list[str]]) -> str:
    """`shots: 2 (base), 0 (finetune, heal)`; one value alone needs no names."""
    label = name.removeprefix("num_").replace("_", " ")
    if len(by_value) == 1:
        return units.clean(f"{label}: {next(iter(by_value))}")
    parts = [f"{text} ({', '.join(names)})" for text, names in by_value.items()]
    return units.clean(f"{label}: {', '.join(parts)}")


def _machine_speed(run: Run) -> Iterator[Block]:
    for bench in run.of_kind("bench"):
        assert bench.report is not None, bench.name
        facts = [f"{name.replace('_', ' ')} {units.quantity(m.value, m.unit)}"
                 for name, m in bench.report.measures.items() if m.value is not None]  # fmt: skip
        if facts:
            yield Prose(units.clean(f"The machine itself: {', '.join(facts)}."))


def _sensitivity(run: Run) -> Iterator[Block]:
    for step in run.of_kind("sensitivity"):
        assert step.report is not None, step.name
        yield sensitivity_table(step.report.tables.get("sensitivity", []))


def _training(run: Run) -> Iterator[Block]:
    told = training_table(run)
    yield from [told] if told else []
    for step in run.steps:
        curve = step.report.curve() if step.report else []
        counts = (step.report.word("clipped_share_counts") if step.report else "") or "steps"
        drawn = [charts.loss_curve(curve, step.name),
                 charts.norm_curve(curve, step.name, counts=counts)]  # fmt: skip
        figures: list[Figure] = [figure for figure in drawn if figure is not None]
        if figures:
            yield Figures(figures)


def _samples(run: Run) -> Iterator[Block]:
    """The first samples with the outputs of the first, the reference and the last model."""
    chosen = _telling(run)
    if not chosen:
        return
    outputs = {name: {str(s.get("id")): s for s in rows} for name, rows in chosen.items()}
    first = next(iter(outputs.values()))
    rows = [[Cell(_said(sample.get("source"))), Cell(_said(sample.get("reference"))),
             *(Cell(_said(by_id.get(identity, {}).get("output"))) for by_id in outputs.values())]
            for identity, sample in list(first.items())[:NUM_SAMPLES]]  # fmt: skip
    titles = ["source", "reference", *map(units.clean, outputs)]
    if rows:
        yield Table("The first samples of the test split, as every model answers them.",
                    [Column(title, "prose") for title in titles], rows)  # fmt: skip


def _telling(run: Run) -> dict[str, list[dict[str, object]]]:
    """Samples of the checkpoints worth reading side by side: base, fine-tuned, compressed."""
    judged = {results.checkpoint_of(run, e): e for e in run.of_kind("eval")}
    names = list(judged)
    if not names:
        return {}
    last = next((r for r in results.rows(run) if r.checkpoint == names[-1]), None)
    middle = last.to_reference.against if last and last.to_reference else names[-1]
    wanted = [name for name in dict.fromkeys([names[0], middle, names[-1]]) if name in judged]
    reports = {name: judged[name].report for name in wanted}
    found = {name: list(report.samples()) for name, report in reports.items() if report}
    return {name: rows for name, rows in found.items() if rows}


def _said(text: object) -> str:
    if isinstance(text, dict):
        text = "\n".join(str(value) for value in text.values())
    return units.clean(text if text not in (None, "") else "(empty)")
