"""The config groups and the files that fill them: the user's own before the packaged ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lcc.core.errors import RecipeError, SafetyError
from lcc.core.nearest import did_you_mean
from lcc.core.packaged import config_roots, recipe_roots
from lcc.core.yaml_source import YamlSource

GROUPS = ("model", "dataset", "task", "method", "clip", "distributed", "plan", "tracker",
          "launcher", "sampler", "scale", "recipe")  # fmt: skip

_FILES: dict[str, Path] = {}  # recipes given by path, for the length of one command


@contextmanager
def recipe_file(name: str) -> Iterator[str]:
    """The recipe name to compose with: `name` itself, or the stem of the file it is a path to."""
    path = Path(name)
    if not name.endswith(".yaml"):
        yield name
        return
    if not path.is_file():
        raise RecipeError(f"{name}: no such file; lcc recipes ls lists the recipes.")
    _FILES[path.stem] = path.resolve()
    try:
        yield path.stem
    finally:
        del _FILES[path.stem]


def choices(group: str) -> dict[str, Path]:
    """Name → file of every entry of a group; the user's own folders come first."""
    roots = recipe_roots() if group == "recipe" else [root / group for root in config_roots()]
    found: dict[str, Path] = dict(_FILES) if group == "recipe" else {}
    for root in roots:
        for path in sorted(root.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def defaults_of(recipe: YamlSource) -> dict[str, str]:
    """Group → choice of the recipe's defaults list, each entry checked."""
    entries = recipe.content.get("defaults") or []
    path = short_path(recipe.path)
    if not isinstance(entries, list):
        raise RecipeError(f"{path}:{recipe.lines.get('defaults', 1)}: defaults: expected a list "
                          f"of '- override /group: NAME', got {entries!r}.")  # fmt: skip
    found: dict[str, str] = {}
    for index, entry in enumerate(entries):
        place = f"{path}:{recipe.lines.get(f'defaults.{index}', 1)}: "
        if entry == recipe.path.stem or not isinstance(entry, str | dict):
            raise RecipeError(f"{place}defaults: got {entry!r}; write the name of another recipe "
                              "or 'override /group: NAME'.")  # fmt: skip
        if isinstance(entry, str) and entry != "_self_":
            check_exists("recipe", entry, f"{place}defaults: ")
        for key, value in entry.items() if isinstance(entry, dict) else ():
            group = _default_group(str(key), value, f"{place}defaults")
            if value is not None:
                check_exists(group, str(value), place)
                found[group] = str(value)
    return found


def _default_group(key: str, value: Any, where: str) -> str:
    group = key.removeprefix("override").strip().lstrip("/")
    if group.split("/")[0] == "hydra":
        raise SafetyError(f"{where}: '{key}': a recipe never changes Hydra's own settings.")
    if group not in GROUPS:
        raise RecipeError(f"{where}: no group is named {group!r}{did_you_mean(group, GROUPS)}")
    if not re.fullmatch(r"override\s+/\w+", key):
        raise RecipeError(f"{where}: got '{key}: {value}'; write 'override /{group}: {value}'.")
    return group


def check_exists(group: str, name: str, where: str) -> None:
    known = choices(group)
    if name not in known and (name != "null" or group == "recipe"):
        raise RecipeError(
            f"{where}{group}: no {group} is named {name!r}{did_you_mean(name, known)}"
        )


def short_path(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
