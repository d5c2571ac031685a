"""What answers without any model, and whether each checkpoint beats it, on the same samples."""

from __future__ import annotations

from typing import Any

from lcc.core.report import Run, RunStep
from lcc.views import results, units
from lcc.views.document import Cell, Column, Table
from lcc.views.results import Delta, Score
from lcc.views.tables import change


def baseline_table(run: Run) -> Table | None:
    """The baseline's own scores, then every checkpoint's difference to it; None without one."""
    told = [(step, step.report.tables.get("baseline", []))
            for step in run.of_kind("eval") if step.report]  # fmt: skip
    judged = [(step, lines) for step, lines in told if lines]
    if not judged:
        return None
    first, lines = judged[0]
    name = str(lines[0].get("baseline"))
    columns = [Column("", "name"), *(Column(results.label(str(one["metric"]))) for one in lines)]
    own = [Cell(units.clean(name)), *(_own(one) for one in lines)]
    rows = [own, *([_name(run, step), *(_difference(one, name) for one in each)]
                   for step, each in judged)]  # fmt: skip
    said = first.report.word("baseline") if first.report else ""
    return Table(f"Baseline, {said}, and every checkpoint's difference to it on the same samples, "
                 "with 95 % intervals of a paired bootstrap.", columns, rows)  # fmt: skip


def _name(run: Run, step: RunStep) -> Cell:
    return Cell(units.clean(results.checkpoint_of(run, step)))


def _own(line: dict[str, Any]) -> Cell:
    unit = str(line.get("unit") or "")
    return Cell(units.score(line["value"], unit), units.interval(line["low"], line["high"], unit))


def _difference(line: dict[str, Any], name: str) -> Cell:
    score = Score(line["delta"], str(line.get("unit") or ""), line["delta_low"], line["delta_high"])
    return change(Delta(str(line["metric"]), name, score, str(line["verdict"])))
