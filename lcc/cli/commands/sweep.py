"""Show a sweep: how far every point is, or what the points reached."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lcc import reports
from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError, did_you_mean
from lcc.reports.sweep import PointRow, point_rows, status_lines
from lcc.store.sweeps import Sweep, find_sweep, read_sweep

USAGE: str = """usage: lcc sweep status [SWEEP] [--json]   how far every point is, and who drives
       lcc sweep table [SWEEP] [--json]    what the points reached; writes report.html

SWEEP is a name below runs/ or a sweep's folder; without one, the newest sweep. A sweep is started,
and gone on with, by -m:

  lcc run -m +recipe=tiny seed=1,2 launcher.workers=2
  lcc sweep status"""


def main(arguments: Arguments) -> int:
    action, *names = arguments.words or ["status"]
    if action not in ("status", "table"):
        raise RecipeError(f"lcc sweep has no {action!r}{did_you_mean(action, ('status', 'table'))}")
    if len(names) > 1 or arguments.overrides:
        extra = [*names[1:], *arguments.overrides][0]
        raise RecipeError(
            f"lcc sweep {action} takes one sweep and no overrides, got {extra!r}; "
            "a sweep is started by lcc run -m."
        )
    sweep = read_sweep(find_sweep(next(iter(names), None)))
    if arguments.json:
        points = [_facts(sweep, row) for row in point_rows(sweep)]
        emit({"sweep": sweep.folder.name, "command": sweep.command, "points": points}, True, "")
    elif action == "status":
        print("\n".join(status_lines(sweep)))
    else:
        reports.write_sweep(sweep.folder)
        reports.print_points(sweep.folder)
    return 0


def _facts(sweep: Sweep, row: PointRow) -> dict[str, Any]:
    said = asdict(row.result) if row.result else {}
    return {
        **said,
        "point": row.point.varied,
        "status": row.status,
        "values": row.values,
        "log": str(sweep.log(row.point.index)),
    }
