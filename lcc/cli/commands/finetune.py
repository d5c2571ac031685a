"""Run a recipe up to and including fine-tuning."""

from __future__ import annotations

from lcc.cli.arguments import Arguments
from lcc.cli.commands._recipe import run_verb

USAGE = """usage: lcc finetune [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc finetune +recipe=mt_en_zh clip.max_norm=0.5 distributed.world_size=2
  lcc finetune model=./folder dataset=tiny_en_zh task=translation"""


def main(arguments: Arguments) -> int:
    return run_verb("finetune", arguments)
