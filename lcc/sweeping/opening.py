"""What a sweep is before it runs: its launcher, sampler, objectives and ranges, and its folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcc.core.config import compose
from lcc.core.describe import describe, digest
from lcc.core.errors import RecipeError
from lcc.core.ranges import ranges
from lcc.core.searching import Search
from lcc.core.sweeps import Sweep, read_sweep
from lcc.recipe import Recipe, load_composed

OWN = ("launcher", "sampler", "objectives")  # groups and keys that speak of the sweep as a whole


@dataclass(frozen=True)
class Asked:
    """The words of a sweep, understood."""

    name: str
    launcher: Any
    sampler: Any
    search: Search
    words: list[str] = field(default_factory=list)  # of a point, its ranges still open


def asked(words: Sequence[str]) -> Asked:
    """What `-m WORDS` asks for; raises RecipeError with one sentence a mistake."""
    about = [word for word in words if _head(word) in OWN]
    several = next((word for word in about if ranges([word])), None)
    if several is not None:
        raise RecipeError(f"'{several}': a sweep has one {_head(several)}; write one value.")
    open_words = [word for word in words if word not in about]
    recipe = _recipe_of([*_recipes(open_words), *about])
    search = Search(tuple(ranges(open_words)), dict(recipe.objectives))
    recipe.sampler.check(search)
    return Asked(recipe.name, recipe.launcher, recipe.sampler, search, open_words)


def _recipe_of(words: list[str]) -> Recipe:
    """Only what a recipe says about the sweep: its points may still be full of mistakes."""
    composed = compose(words)
    composed.values.update({"stages": {}, "plan": {}})
    return load_composed(composed)


def _recipes(words: Sequence[str]) -> list[str]:
    """The word that names the recipe; where several are swept, the first speaks for all."""
    found = [word for word in words if _head(word) == "recipe"]
    listed = ranges(found)
    return [f"+recipe={listed[0].values[0]}"] if listed and hasattr(listed[0], "values") else found


def _head(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition(".")[0]


def open_sweep(wanted: Asked, words: list[str], *, verb: str, root: Path) -> Sweep:
    """The sweep of these words: as an earlier command left it, or new.

    Where its points run is no part of what it is: another launcher goes on with the same sweep.
    """
    same = [word for word in words if _head(word) != "launcher"]
    folder = root / f"sweep-{wanted.name}-{digest([verb, same])[:8]}"
    if (folder / "sweep.json").is_file():
        sweep = read_sweep(folder)
    else:
        sweep = Sweep(folder, verb, words, started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    sweep.name, sweep.words = wanted.name, words
    sweep.command = shlex.join(["lcc", verb, "-m", *words])
    sweep.launcher, sweep.sampler = describe(wanted.launcher), describe(wanted.sampler)
    sweep.objectives = wanted.search.objectives
    sweep.ranges = [describe(r) for r in wanted.search.ranges]
    return sweep
