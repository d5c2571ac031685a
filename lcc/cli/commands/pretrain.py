"""Run a recipe up to and including pretraining."""

from __future__ import annotations

from lcc.cli.arguments import Arguments
from lcc.cli.commands._recipe import run_verb

USAGE = """usage: lcc pretrain [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc pretrain +recipe=pretrain_tiny
  lcc pretrain model=smollm2_135m dataset=nyt_text task=generation   from a checkpoint"""


def main(arguments: Arguments) -> int:
    return run_verb("pretrain", arguments)
