"""Details of a run's report: lineage, steps, settings, machine, and the commands that make it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lcc.core import format
from lcc.reports.document import Block, Bullets, Cell, Chain, Code, Collapsible, Column, Prose, Table
from lcc.store.runs import RunFacts, RunStep, StepReport

SHORT = 12  # letters of a key that a reader compares


def lineage(run: RunFacts) -> Iterator[Block]:
    """Which step's model came from which, with keys."""
    yield Chain([format.clean(name) for name in run.checkpoints])
    rows = [
        [Cell(format.clean(s.name)), Cell(s.kind), Cell(_parents(run, s)), Cell(s.key[:SHORT])]
        for s in run.steps
    ]
    columns = [
        Column("step", "name"),
        Column("kind", "name"),
        Column("made from", "prose"),
        Column("key", "code"),
    ]
    yield Collapsible(
        "Inputs and keys of every step", [Table("A key says everything that made the result.", columns, rows)]
    )


def _parents(run: RunFacts, step: RunStep) -> str:
    inputs = step.report.inputs if step.report else {}
    named = {name: run.with_key(key) for name, key in inputs.items()}
    texts = [
        f"{name.removeprefix('checkpoint.')}: {inputs[name][:SHORT] if p is None else p.name}"
        for name, p in named.items()
    ]
    return format.clean(", ".join(texts)) or format.MISSING


def steps(run: RunFacts) -> Iterator[Block]:
    """Time, memory and size of every step."""
    rows = [
        [
            Cell(format.clean(s.name)),
            Cell(s.status),
            Cell(format.duration(_seconds(s))),
            Cell(format.size(_fact(s, "peak_memory_bytes"))),
            Cell(format.size(s.model_bytes)),
        ]
        for s in run.steps
    ]
    columns = [
        Column("step", "name"),
        Column("status", "name"),
        Column("time"),
        Column("peak memory"),
        Column("model on disk"),
    ]
    yield Table("Time is what the step took when it was computed.", columns, rows)


def remarks(run: RunFacts) -> Iterator[Block]:
    """Warnings and notes of all steps: warnings first, each sentence once."""
    reports = [(step.name, step.report) for step in run.steps if step.report]
    warnings = _once([(name, text) for name, report in reports for text in report.warnings])
    notes = _once([(name, text) for name, report in reports for text in report.notes])
    if warnings:
        yield Bullets(warnings, tone="bad")
    if notes:
        yield Bullets(notes)


def _once(said: list[tuple[str, str]]) -> list[str]:
    """`step: sentence`, with every step that has the same before it."""
    names: dict[str, list[str]] = {}
    for name, text in said:
        names.setdefault(text, []).append(name)
    return [format.clean(f"{', '.join(who)}: {text}") for text, who in names.items()]


def _seconds(step: RunStep) -> float | None:
    seconds = _fact(step, "seconds")
    return seconds if seconds is not None else step.seconds or None


def _fact(step: RunStep, name: str) -> float | None:
    value = step.report.facts.get(name) if step.report else None
    return value if isinstance(value, int | float) else None


def settings(run: RunFacts) -> Iterator[Block]:
    """Every option and every measure of every step; folded, as few readers want them all."""
    for step in run.steps:
        if step.report is None:
            continue
        options = [f"{key}: {value}" for key, value in _leaves(step.report.node)]
        blocks: list[Block] = [Code(format.clean("\n".join(options)))] if options else []
        rows = [
            [Cell(format.clean(name)), Cell(format.clean(format.quantity(m.value, m.unit)))]
            for name, m in step.report.measures.items()
        ]
        if rows:
            columns = [Column("measure", "name"), Column("value")]
            blocks.append(Table("What the step measured.", columns, rows))
        blocks += [_plain_table(name, lines) for name, lines in step.report.tables.items() if lines]
        if blocks:
            yield Collapsible(format.clean(step.name), blocks)


def _plain_table(name: str, lines: list[dict[str, Any]]) -> Table:
    titles = list(dict.fromkeys(key for line in lines for key in line))
    rows = [
        [Cell(format.clean(format.quantity(_simple(line.get(title)), _unit(title)))) for title in titles]
        for line in lines
    ]
    columns = [Column(format.clean(title.replace("_", " "))) for title in titles]
    return Table(format.clean(name.replace("_", " ")), columns, rows)


def _simple(value: Any) -> float | int | str | None:
    return value if isinstance(value, int | float | str) or value is None else str(value)


def _unit(title: str) -> str:
    ends = {"bytes": "bytes", "seconds": "seconds", "_share": "share", "_ratio": "ratio"}
    return next((unit for end, unit in ends.items() if title.endswith(end)), "")


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, "–" if node is None else str(node)


def reproduction(run: RunFacts) -> Iterator[Block]:
    """The commands that make this run again, and what they install under which licence."""
    recipe = run.recipe
    fetched = [
        f"{group}={node['name']}"
        for group in ("model", "dataset")
        if isinstance(node := recipe.get(group), dict) and node.get("name")
    ]
    version = next(
        (s.report.versions["lcc"] for s in run.steps if s.report and "lcc" in s.report.versions), None
    )
    lines = [f"# with lcc {version}"] if version else []
    lines += [f"lcc fetch {' '.join(fetched)}"] if fetched else []
    yield Code(format.clean("\n".join([*lines, str(run.facts.get("command") or "")])).strip())
    licences = list(_licences(run))
    if licences:
        yield Bullets(licences)


def _licences(run: RunFacts) -> Iterator[str]:
    for step in run.steps:
        spec = step.report.node.get("spec") if step.report else None
        if isinstance(spec, dict) and (spec.get("licence") or spec.get("origin")):
            facts = [str(spec[key]) for key in ("licence", "origin") if spec.get(key)]
            yield format.clean(f"{spec.get('name') or step.name}: {'; '.join(facts)}")


def machines(run: RunFacts) -> Iterator[Block]:
    """Every machine and set of versions that made a step; usually one."""
    seen: dict[str, tuple[list[str], RunStep]] = {}
    for step in run.steps:
        if step.report is not None:
            identity = repr((step.report.machine, step.report.versions))
            seen.setdefault(identity, ([], step))[0].append(step.name)
    for names, step in seen.values():
        assert step.report is not None, step.name
        if len(seen) > 1:
            yield Prose(format.clean(f"Steps {', '.join(names)}:"))
        facts = [(key, _machine_fact(key, value)) for key, value in step.report.machine.items()]
        facts += [(key, str(_fact_text(step, key))) for key in ("device", "dtype", "threads", "seed")]
        rows = [[Cell(format.clean(k.removesuffix("_bytes"))), Cell(format.clean(v))] for k, v in facts]
        yield Table("Machine", [Column("what", "name"), Column("value", "prose")], rows)
        texts = [f"{package} {version}" for package, version in step.report.versions.items()]
        yield Prose(format.clean(" · ".join(texts)))


def _machine_fact(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return format.size(value)
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _fact_text(step: RunStep, key: str) -> Any:
    fact = step.report.facts.get(key) if step.report else None
    return format.MISSING if fact is None else fact


# How every training of a run went, one row each: losses, learning rate and what was clipped.

Draw = Callable[[StepReport], Cell]


def training_table(run: RunFacts) -> Table | None:
    """One row for each step that took optimizer steps; a column that no row fills is left out."""
    trained = [
        (s.name, s.report)
        for s in run.steps
        if s.report is not None and s.report.number("train_loss") is not None
    ]
    if not trained:
        return None
    drawn = {title: [draw(report) for _, report in trained] for title, draw in _COLUMNS.items()}
    filled = {t: cells for t, cells in drawn.items() if {c.text for c in cells} - {format.MISSING}}
    rows = [
        [Cell(format.clean(name)), *(cells[i] for cells in filled.values())]
        for i, (name, _) in enumerate(trained)
    ]
    columns = [Column("step", "name"), *(Column(title) for title in filled)]
    return Table("Losses in nats per target; clipped is the mean over the steps.", columns, rows)


def _number(name: str) -> Draw:
    def draw(report: StepReport) -> Cell:
        measure = report.measures.get(name)
        return Cell(format.quantity(measure.value, measure.unit) if measure else format.MISSING)

    return draw


def _validation(report: StepReport) -> Cell:
    before, after = (report.number(f"validation_loss_{end}") for end in ("before", "after"))
    if after is None:
        return Cell(format.MISSING)
    return Cell(format.quantity(after, ""), f"{format.quantity(before, '')} before")


def _clipping(report: StepReport) -> Cell:
    clip = report.node.get("clip")
    name = clip.get("name") if isinstance(clip, dict) else None
    bound = report.number("clip_threshold")
    below = "" if bound is None else f"threshold {format.quantity(bound, '')}"
    return Cell(format.clean(name) if name else format.MISSING, below)


def _clipped(report: StepReport) -> Cell:
    share, counts = report.number("clipped_share"), report.word("clipped_share_counts")
    if share is None:
        return Cell(format.MISSING)
    if counts in ("", "steps"):
        return Cell(format.share(share), "of steps")
    touched = report.number("clipped_steps_share")
    return Cell(format.share(share), f"of {format.clean(counts)}, in {format.share(touched)} of steps")


_COLUMNS: dict[str, Draw] = {
    "steps": _number("steps"),
    "learning rate": _number("lr"),
    "training loss": _number("train_loss"),
    "validation loss": _validation,
    "clipping": _clipping,
    "clipped": _clipped,
    "steps skipped": _number("nonfinite_steps"),
}
