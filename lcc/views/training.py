"""How every training of a run went, one row each: losses, learning rate and what was clipped."""

from __future__ import annotations

from collections.abc import Callable

from lcc.core.report import Run, StepReport
from lcc.views import units
from lcc.views.document import Cell, Column, Table

Draw = Callable[[StepReport], Cell]


def training_table(run: Run) -> Table | None:
    """One row for each step that took optimizer steps; a column that no row fills is left out."""
    trained = [(s.name, s.report) for s in run.steps
               if s.report is not None and s.report.number("train_loss") is not None]  # fmt: skip
    if not trained:
        return None
    drawn = {title: [draw(report) for _, report in trained] for title, draw in _COLUMNS.items()}
    filled = {t: cells for t, cells in drawn.items() if {c.text for c in cells} - {units.MISSING}}
    rows = [[Cell(units.clean(name)), *(cells[i] for cells in filled.values())]
            for i, (name, _) in enumerate(trained)]  # fmt: skip
    columns = [Column("step", "name"), *(Column(title) for title in filled)]
    return Table("Losses in nats per target; clipped is the mean over the steps.", columns, rows)


def _number(name: str) -> Draw:
    def draw(report: StepReport) -> Cell:
        found = report.measures.get(name)
        return Cell(units.quantity(found.value, found.unit) if found else units.MISSING)

    return draw


def _validation(report: StepReport) -> Cell:
    before, after = (report.number(f"validation_loss_{end}") for end in ("before", "after"))
    if after is None:
        return Cell(units.MISSING)
    return Cell(units.quantity(after, ""), f"{units.quantity(before, '')} before")


def _clipping(report: StepReport) -> Cell:
    clip = report.node.get("clip")
    name = clip.get("name") if isinstance(clip, dict) else None
    bound = report.number("clip_threshold")
    below = "" if bound is None else f"threshold {units.quantity(bound, '')}"
    return Cell(units.clean(name) if name else units.MISSING, below)


def _clipped(report: StepReport) -> Cell:
    share, counts = report.number("clipped_share"), report.word("clipped_share_counts")
    if share is None:
        return Cell(units.MISSING)
    if counts in ("", "steps"):
        return Cell(units.share(share), "of steps")
    touched = report.number("clipped_steps_share")
    return Cell(units.share(share), f"of {units.clean(counts)}, in {units.share(touched)} of steps")


_COLUMNS: dict[str, Draw] = {
    "steps": _number("steps"),
    "learning rate": _number("lr"),
    "training loss": _number("train_loss"),
    "validation loss": _validation,
    "clipping": _clipping,
    "clipped": _clipped,
    "steps skipped": _number("nonfinite_steps"),
}
