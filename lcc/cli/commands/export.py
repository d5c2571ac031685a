"""Export a model to another tool's format, and prove that it answers there as it did before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.cli.arguments import Arguments, emit
from lcc.cli.commands._models import ModelFolder, model_of_run, named_model
from lcc.config.cards import decode, find_card, names
from lcc.core.errors import RecipeError, did_you_mean
from lcc.core.format import size
from lcc.store.store import ROOT

if TYPE_CHECKING:
    from lcc.export.model_card import Provenance
    from lcc.export.publish import Exported

USAGE = """usage: lcc export STEP [format=NAME] [format.OPTION=VALUE …] --out FOLDER
       lcc export model=ARTIFACT [format=NAME] --out FOLDER

  lcc export quantize --out my_model         the last run's quantized model, as it lies
  lcc export tiny-1a2b3c4d/finetune format=gguf format.type=q4_k_m --out my_gguf
  lcc export model=./folder format=ctranslate2 --out my_ct2

ARTIFACT is a step of the last run, RUN/STEP, the start of a key, or a folder. Format hf (default)
is a copy that `from_pretrained` reads; every other format is loaded in the engine that it is made
for and compared with its source on 200 prompts. Where they differ by more than the format explains
the export is kept as FOLDER.failed and the exit code is 9. docs/exports.md has the formats."""


def main(arguments: Arguments) -> int:
    source, options = _model_and_format(arguments)
    exporter = _exporter(options)
    target = Path(arguments.options["out"])
    if target.exists():
        raise RecipeError(f"{target} exists already; choose another folder with --out.")
    from lcc.core.machine import cores
    from lcc.export.publish import ParityTrial, publish

    prompts = _task_prompts(source) if exporter.engine else None
    trial = ParityTrial(prompts=prompts, threads=cores())
    made = publish(source.folder, target, exporter, trial=trial, origin=_origin(source))
    _print(source, made, str(options["name"]), as_json=arguments.json)
    return 0


def _model_and_format(arguments: Arguments) -> tuple[ModelFolder, dict[str, Any]]:
    """The model, and the format with its options as a recipe would write them."""
    model, options = None, {"name": "hf"}
    for word in arguments.overrides:
        key, _, value = word.partition("=")
        if key == "model":
            model = value
        elif key == "format":
            options["name"] = value
        elif key.startswith("format."):
            options[key.removeprefix("format.")] = _value(value)
        else:
            raise RecipeError(f"export takes model=, format=NAME and format.OPTION=, not '{word}'.")
    words = arguments.words
    if len(words) + (model is not None) != 1 or "out" not in arguments.options:
        raise RecipeError("say which model and where to: lcc export STEP --out FOLDER.")
    if model is not None:
        return named_model(model), options
    run, slash, step = words[0].rpartition("/")
    if slash and Path(words[0]).is_dir():
        return named_model(words[0]), options
    return model_of_run(run, step), options


def _value(text: str) -> Any:
    """A word as YAML has it: a number, true, false, null, or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _exporter(options: dict[str, Any]) -> Any:
    name = options["name"]
    if name not in names("exporters"):
        raise RecipeError(f"no format is named {name!r}{did_you_mean(name, names('exporters'))}")
    given = {key: value for key, value in options.items() if key != "name"}
    return decode(find_card("exporters", name), given, "format")


def _task_prompts(source: ModelFolder) -> list[list[int]] | None:
    """Prompts of the run's own test rows; None where it has no task with enough of them."""
    if source.run is None:
        return None
    from lcc.data.dataset import PreparedData
    from lcc.export.parity import NUM_PROMPTS, task_prompts
    from lcc.pipeline.recipe import load_recipe
    from lcc.store.store import Store

    prepared = next((s for s in source.run["steps"] if s["kind"] == "prepare"), None)
    artifact = Store(ROOT).find(prepared["key"]) if prepared else None
    task = load_recipe(source.run["words"]).task if source.run.get("words") else None
    if artifact is None or task is None:
        return None
    rows = task_prompts(source.folder, task, PreparedData.open(artifact.path / "data"))
    return rows if len(rows) >= NUM_PROMPTS else None


def _origin(source: ModelFolder) -> Provenance:
    from lcc.export.model_card import Provenance, evaluated

    if source.run is None:
        return Provenance()
    from lcc.store.store import Store

    origin, store = Provenance.of_run(source.run, source.step), Store(ROOT)
    evaluations: dict[str, dict[str, float]] = {}
    for step in source.run["steps"]:
        judged = step["name"].partition(".")[2]
        if step["kind"] != "eval" or step["status"] not in ("finished", "reused"):
            continue
        artifact = store.find(step["key"]) if judged else None
        if artifact is not None:
            evaluations[judged] = evaluated(artifact.report)
    origin.judge(evaluations, source.step)
    return origin


def _print(source: ModelFolder, made: Exported, format: str, *, as_json: bool) -> None:
    text = f"exported {source.name} to {made.folder} ({size(made.bytes)}, {format})"
    parity = made.parity
    if parity.kind != "bytes":
        text += (
            f"\nagrees with its source on {parity.agreement:.2%} of {parity.num_tokens} "
            f"{parity.kind} of {parity.num_prompts} prompts; off by {parity.logit_error:.2%} "
            f"of the spread (allowed {parity.tolerance:.2%})"
        )
    facts = {
        "model": source.name,
        "folder": str(made.folder),
        "format": format,
        "bytes": made.bytes,
        "facts": made.facts,
        "parity": parity.facts(),
    }
    if source.run is not None:
        facts |= {"run": source.run["run"], "step": source.step}
    emit(facts, as_json, text)
