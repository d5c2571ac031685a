"""Run a recipe from the first step to the last, reusing what is finished."""

from __future__ import annotations

from lcc.cli.arguments import Arguments
from lcc.cli.commands._recipe import run_verb

USAGE = """usage: lcc run +recipe=NAME [key=value …] [-m] [--cfg] [--json]

  lcc run +recipe=tiny                       seconds, offline
  lcc run +recipe=mt_en_zh_small seed=1      another seed
  lcc run +recipe=tiny scale=smoke           any recipe made tiny
  lcc run -m +recipe=tiny plan.quantize.bits=8,4
  lcc run +recipe=tiny --cfg                 print the composed recipe and stop"""


def main(arguments: Arguments) -> int:
    return run_verb("run", arguments)
