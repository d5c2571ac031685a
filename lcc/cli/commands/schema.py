"""Print the JSON Schema of a recipe, for editors and programs."""

from __future__ import annotations

import json
from pathlib import Path

from lcc.cli.arguments import Arguments
from lcc.pipeline.recipe import recipe_schema

USAGE = """usage: lcc schema [--out FILE]

Recipes carry the line `# yaml-language-server: $schema=recipe.schema.json`, so after
`lcc schema --out recipes/recipe.schema.json` an editor completes and checks them."""


def main(arguments: Arguments) -> int:
    text = json.dumps(recipe_schema(), indent=1, ensure_ascii=False)
    if "out" in arguments.options:
        Path(arguments.options["out"]).write_text(text + "\n", encoding="utf-8")
        print(f"wrote {arguments.options['out']}")
    else:
        print(text)
    return 0
