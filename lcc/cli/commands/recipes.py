"""List, show, copy or check recipes: ls, show, cp, validate."""

from __future__ import annotations

from pathlib import Path

from lcc.cli.arguments import Arguments, emit
from lcc.config.yaml_files import choices, read_yaml
from lcc.core.errors import LccError, RecipeError, did_you_mean

USAGE = """usage: lcc recipes ls | show NAME | cp NAME [--out FILE] | validate [NAME | FILE …]

  lcc recipes ls                     every recipe: yours in ./recipes first, then the packaged ones
  lcc recipes cp mt_en_zh            copy it to ./recipes to change it
  lcc recipes validate my.yaml       find every mistake without running anything"""


def main(arguments: Arguments) -> int:
    actions = {"ls": _list, "show": _show, "cp": _copy, "validate": _validate}
    action, *rest = arguments.words or ["ls"]
    if action not in actions:
        raise RecipeError(f"recipes: no action is named {action!r}{did_you_mean(action, actions)}")
    return actions[action](rest, arguments)


def _list(names: list[str], arguments: Arguments) -> int:
    rows = {name: {"path": str(path), "about": _about(path)} for name, path in choices("recipe").items()}
    emit(rows, arguments.json, "\n".join(f"{n:18} {row['about']}" for n, row in rows.items()))
    return 0


def _show(names: list[str], arguments: Arguments) -> int:
    text = _path(names).read_text(encoding="utf-8")
    emit({"text": text, "values": read_yaml(_path(names)).content}, arguments.json, text.rstrip())
    return 0


def _copy(names: list[str], arguments: Arguments) -> int:
    source = _path(names)
    target = Path(arguments.options.get("out", f"recipes/{source.name}"))
    if target.exists():
        raise RecipeError(f"{target} exists already; choose another name with --out FILE.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    run = f"lcc run +recipe={target.stem}"
    emit({"copied": str(target)}, arguments.json, f"copied to {target}; run it with {run}")
    return 0


def _validate(names: list[str], arguments: Arguments) -> int:
    """Every recipe is tried; the first mistake's exit code is returned."""
    results: dict[str, str] = {}
    code = 0
    for name in names or list(choices("recipe")):
        try:
            results[name] = _check(name, arguments.overrides)
        except LccError as error:
            results[name] = str(error)
            code = code or error.exit_code
    emit(results, arguments.json, "\n".join(f"{name}: {text}" for name, text in results.items()))
    return code


def _check(name: str, overrides: list[str]) -> str:
    from lcc.config.yaml_files import recipe_file
    from lcc.pipeline.planner import pipeline_of

    with recipe_file(name) as known:
        pipeline = pipeline_of([f"+recipe={known}", *overrides], "preview")
    return f"fine, {len(pipeline.steps)} steps"


def _path(names: list[str]) -> Path:
    known = choices("recipe")
    if len(names) != 1:
        raise RecipeError(f"name one recipe: {', '.join(known)}.")
    if names[0] not in known:
        raise RecipeError(f"no recipe is named {names[0]!r}{did_you_mean(names[0], known)}")
    return known[names[0]]


def _about(path: Path) -> str:
    """The first comment line after the language-server line: what the recipe is for."""
    lines = [
        line.lstrip("# ").rstrip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#") and "yaml-language-server" not in line and "@package" not in line
    ]
    return lines[0] if lines else ""
