"""Measure the speed, memory and size of a recipe's checkpoints."""

from __future__ import annotations

from lcc.cli.arguments import Arguments
from lcc.cli.commands._recipe import run_verb

USAGE = """usage: lcc bench [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc bench +recipe=tiny
  lcc bench                                  go on with the last run of this folder"""


def main(arguments: Arguments) -> int:
    return run_verb("bench", arguments)
