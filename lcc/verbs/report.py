"""Show a run: a table here, report.md and report.html in its folder."""

from __future__ import annotations

from lcc import views
from lcc.core.arguments import Arguments, emit
from lcc.core.errors import RecipeError
from lcc.core.report import find_run, read_run
from lcc.views import results

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
    views.write_reports(folder)
    views.print_run(folder)
    return 0
