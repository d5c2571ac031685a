"""Run a recipe up to its evaluation, or evaluate any checkpoint."""

from __future__ import annotations

from lcc.cli.arguments import Arguments
from lcc.cli.commands._recipe import run_verb

USAGE = """usage: lcc eval [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc eval +recipe=mt_en_zh
  lcc eval model=./folder task=translation dataset=tiny_en_zh
  lcc eval                                   go on with the last run of this folder"""


def main(arguments: Arguments) -> int:
    return run_verb("eval", arguments)
