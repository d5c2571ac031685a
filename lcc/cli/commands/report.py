"""Show a run: a table here, report.md and report.html in its folder."""

from __future__ import annotations

from lcc import reports
from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError
from lcc.reports import results
from lcc.store.runs import find_run, read_run

USAGE = """usage: lcc report [RUN] [--json]

RUN is a name below runs/ or a run's folder; without one, the last run of this folder.

  lcc report                    the newest run
  lcc report --json             its facts for programs"""


def main(arguments: Arguments) -> int:
    if arguments.overrides or len(arguments.words) > 1:
        extra = [*arguments.words[1:], *arguments.overrides][0]
        raise RecipeError(f"report takes one run and no overrides, got {extra!r}.")
    folder = find_run(next(iter(arguments.words), None))
    if arguments.json:
        emit(results.facts(read_run(folder)), True, "")
        return 0
    reports.write_reports(folder)
    reports.print_run(folder)
    return 0
