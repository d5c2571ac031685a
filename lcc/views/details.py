"""How a run was made: lineage, steps, settings, machine, and the commands that make it again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lcc.core.report import Run, RunStep
from lcc.views import units
from lcc.views.document import Block, Bullets, Cell, Chain, Code, Column, Fold, Prose, Table

SHORT = 12  # letters of a key that a reader compares


def lineage(run: Run) -> Iterator[Block]:
    """Which step's model came from which, with keys."""
    yield Chain([units.clean(name) for name in run.checkpoints])
    rows = [[Cell(units.clean(s.name)), Cell(s.kind), Cell(_parents(run, s)), Cell(s.key[:SHORT])]
            for s in run.steps]  # fmt: skip
    columns = [Column("step", "name"), Column("kind", "name"), Column("made from", "prose"),
               Column("key", "code")]  # fmt: skip
    yield Fold("Inputs and keys of every step",
               [Table("A key says everything that made the result.", columns, rows)])  # fmt: skip


def _parents(run: Run, step: RunStep) -> str:
    inputs = step.report.inputs if step.report else {}
    named = {name: run.with_key(key) for name, key in inputs.items()}
    texts = [f"{name.removeprefix('checkpoint.')}: {inputs[name][:SHORT] if p is None else p.name}"
             for name, p in named.items()]  # fmt: skip
    return units.clean(", ".join(texts)) or units.MISSING


def steps(run: Run) -> Iterator[Block]:
    """Time, memory and size of every step."""
    rows = [[Cell(units.clean(s.name)), Cell(s.status), Cell(units.duration(_seconds(s))),
             Cell(units.size(_fact(s, "peak_memory_bytes"))), Cell(units.size(s.model_bytes))]
            for s in run.steps]  # fmt: skip
    columns = [Column("step", "name"), Column("status", "name"), Column("time"),
               Column("peak memory"), Column("model on disk")]  # fmt: skip
    yield Table("Time is what the step took when it was computed.", columns, rows)


def remarks(run: Run) -> Iterator[Block]:
    """Everything that a step said a reader must know: warnings first, each sentence once."""
    reports = [(step.name, step.report) for step in run.steps if step.report]
    warnings = _once([(name, text) for name, report in reports for text in report.warnings])
    notes = _once([(name, text) for name, report in reports for text in report.notes])
    if warnings:
        yield Bullets(warnings, tone="bad")
    if notes:
        yield Bullets(notes)


def _once(said: list[tuple[str, str]]) -> list[str]:
    """`step: sentence`, with every step that said the same before it."""
    names: dict[str, list[str]] = {}
    for name, text in said:
        names.setdefault(text, []).append(name)
    return [units.clean(f"{', '.join(who)}: {text}") for text, who in names.items()]


def _seconds(step: RunStep) -> float | None:
    found = _fact(step, "seconds")
    return found if found is not None else step.seconds or None


def _fact(step: RunStep, name: str) -> float | None:
    value = step.report.facts.get(name) if step.report else None
    return value if isinstance(value, int | float) else None


def settings(run: Run) -> Iterator[Block]:
    """Every option and every measure of every step; folded, as few readers want them all."""
    for step in run.steps:
        if step.report is None:
            continue
        options = [f"{key}: {value}" for key, value in _leaves(step.report.node)]
        blocks: list[Block] = [Code(units.clean("\n".join(options)))] if options else []
        rows = [[Cell(units.clean(name)), Cell(units.clean(units.quantity(m.value, m.unit)))]
                for name, m in step.report.measures.items()]  # fmt: skip
        if rows:
            columns = [Column("measure", "name"), Column("value")]
            blocks.append(Table("What the step measured.", columns, rows))
        blocks += [_plain_table(name, lines) for name, lines in step.report.tables.items() if lines]
        if blocks:
            yield Fold(units.clean(step.name), blocks)


def _plain_table(name: str, lines: list[dict[str, Any]]) -> Table:
    titles = list(dict.fromkeys(key for line in lines for key in line))
    rows = [[Cell(units.clean(units.quantity(_simple(line.get(title)), _unit(title))))
             for title in titles] for line in lines]  # fmt: skip
    columns = [Column(units.clean(title.replace("_", " "))) for title in titles]
    return Table(units.clean(name.replace("_", " ")), columns, rows)


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


def reproduction(run: Run) -> Iterator[Block]:
    """The commands that make this run again, and what they install under which licence."""
    recipe = run.recipe
    fetched = [f"{group}={node['name']}" for group in ("model", "dataset")
               if isinstance(node := recipe.get(group), dict) and node.get("name")]  # fmt: skip
    version = next((s.report.versions["lcc"] for s in run.steps
                    if s.report and "lcc" in s.report.versions), None)  # fmt: skip
    lines = [f"# with lcc {version}"] if version else []
    lines += [f"lcc fetch {' '.join(fetched)}"] if fetched else []
    yield Code(units.clean("\n".join([*lines, str(run.facts.get("command") or "")])).strip())
    licences = list(_licences(run))
    if licences:
        yield Bullets(licences)


def _licences(run: Run) -> Iterator[str]:
    for step in run.steps:
        spec = step.report.node.get("spec") if step.report else None
        if isinstance(spec, dict) and (spec.get("licence") or spec.get("origin")):
            facts = [str(spec[key]) for key in ("licence", "origin") if spec.get(key)]
            yield units.clean(f"{spec.get('name') or step.name}: {'; '.join(facts)}")


def machines(run: Run) -> Iterator[Block]:
    """Every machine and set of versions that made a step; usually one."""
    seen: dict[str, tuple[list[str], RunStep]] = {}
    for step in run.steps:
        if step.report is not None:
            identity = repr((step.report.machine, step.report.versions))
            seen.setdefault(identity, ([], step))[0].append(step.name)
    for names, step in seen.values():
        assert step.report is not None, step.name
        if len(seen) > 1:
            yield Prose(units.clean(f"Steps {', '.join(names)}:"))
        facts = [(key, _machine_fact(key, value)) for key, value in step.report.machine.items()]
        facts += [
            (key, str(_fact_text(step, key))) for key in ("device", "dtype", "threads", "seed")
        ]
        rows = [[Cell(units.clean(k.removesuffix("_bytes"))), Cell(units.clean(v))]
                for k, v in facts]  # fmt: skip
        yield Table("Machine", [Column("what", "name"), Column("value", "prose")], rows)
        texts = [f"{package} {version}" for package, version in step.report.versions.items()]
        yield Prose(units.clean(" · ".join(texts)))


def _machine_fact(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return units.size(value)
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _fact_text(step: RunStep, key: str) -> Any:
    found = step.report.facts.get(key) if step.report else None
    return units.MISSING if found is None else found
