"""Copy a step's model out of the store, as plain files that any tool loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lcc.core.arguments import Arguments, emit
from lcc.core.errors import RecipeError
from lcc.core.nearest import did_you_mean
from lcc.runner import ROOT, find_model, last_run

USAGE = """usage: lcc export [RUN/]STEP [format=hf] --out FOLDER

  lcc export quantize --out my_model         the last run's quantized model
  lcc export tiny-1a2b3c4d/finetune --out my_model

Format hf: safetensors, config and tokenizer, as `from_pretrained` reads them."""
FORMATS = ("hf",)


def main(arguments: Arguments) -> int:
    if len(arguments.words) != 1 or "out" not in arguments.options:
        raise RecipeError("say which step and where to: lcc export STEP --out FOLDER.")
    _check_format(arguments.overrides)
    run, _, name = arguments.words[0].rpartition("/")
    facts = _facts(run) if run else last_run()
    target = Path(arguments.options["out"])
    if target.exists():
        raise RecipeError(f"{target} exists already; choose another folder with --out.")
    shutil.copytree(find_model(name, facts), target)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    text = f"exported {facts['run']}/{name} to {target} ({size / 1e6:.1f} MB)"
    emit({"run": facts["run"], "step": name, "folder": str(target), "bytes": size},
         arguments.json, text)  # fmt: skip
    return 0


def _check_format(overrides: list[str]) -> None:
    for word in overrides:
        key, _, value = word.partition("=")
        if key != "format":
            raise RecipeError(f"export takes format=NAME, not '{word}'.")
        if value not in FORMATS:
            raise RecipeError(f"no format is named {value!r}{did_you_mean(value, FORMATS)}")


def _facts(run: str) -> dict[str, Any]:
    path = ROOT / run / "run.json"
    if not path.is_file():
        known = [p.parent.name for p in ROOT.glob("*/run.json")]
        raise RecipeError(f"no run is named {run!r}{did_you_mean(run, known)}")
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts
