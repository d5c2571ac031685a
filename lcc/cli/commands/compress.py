"""Run a recipe up to its compression plan, or a plan on any checkpoint."""

from __future__ import annotations

from lcc.cli.arguments import Arguments
from lcc.cli.commands._recipe import run_verb

USAGE = """usage: lcc compress [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc compress +recipe=mt_en_zh
  lcc compress model=./folder plan=w8
  lcc compress                               go on with the last run of this folder"""


def main(arguments: Arguments) -> int:
    return run_verb("compress", arguments)
