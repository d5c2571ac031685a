"""Hydra composes: command-line words and YAML files become one plain dict with known origins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lcc.core.decode import Mistake, Mistakes
from lcc.core.errors import RecipeError, SafetyError
from lcc.core.nearest import did_you_mean
from lcc.core.packaged import config_roots, recipe_roots
from lcc.core.yaml_source import YamlSource, read_yaml, refuse_unsafe

GROUPS = ("model", "dataset", "task", "method", "clip", "distributed", "plan", "tracker",
          "launcher", "scale", "recipe")  # fmt: skip
ROOT = "lcc"


@dataclass(frozen=True)
class Composed:
    """One composed recipe: plain values, the words that made it, and where each key came from."""

    values: dict[str, Any]
    overrides: list[str]
    sources: dict[str, YamlSource] = field(default_factory=dict)  # key prefix → file

    @property
    def recipe(self) -> str | None:
        return next((o.split("=", 1)[1] for o in self.overrides if _group(o) == "recipe"), None)

    def origin(self, key: str) -> str:
        """`file:line` or the command-line word that set `key`; empty when nobody did."""
        for override in reversed(self.overrides):
            name = override.lstrip("+~").partition("=")[0]
            if name not in GROUPS and (key == name or key.startswith(f"{name}.")):
                return f"command line '{override}'"
        for prefix, source in self.sources.items():
            inside = key.removeprefix(prefix).lstrip(".") if key.startswith(prefix) else None
            while inside:
                if inside in source.lines:
                    return f"{_short_path(source.path)}:{source.lines[inside]}"
                inside = inside.rpartition(".")[0]
        return ""

    def explain(self, mistakes: Mistakes) -> RecipeError:
        """The same mistakes, each with the place it was made."""
        return RecipeError("\n".join(self._line(mistake) for mistake in mistakes.mistakes))

    def _line(self, mistake: Mistake) -> str:
        origin = self.origin(mistake.key)
        return f"{origin}: {mistake.key}: {mistake.sentence}" if origin else (
            f"{mistake.key}: {mistake.sentence}"
        )  # fmt: skip


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


def compose(overrides: list[str]) -> Composed:
    """Compose the words of a command line into plain values.

    Raises RecipeError or SafetyError with one sentence; imports neither torch nor the environment.
    """
    words = [normalise(word) for word in overrides]
    sources = _sources(words)
    values = _hydra_compose(words)
    refuse_unsafe(values, lambda key: "")
    return Composed(values=values, overrides=words, sources=sources)


def normalise(word: str) -> str:
    """Our small dialect: `recipe=x` means `+recipe=x`, and a value may be set though unwritten."""
    name = word.lstrip("+~").partition("=")[0]
    if name.split(".")[0].split("/")[0].split("@")[0] == "hydra":
        raise SafetyError(f"'{word}': Hydra's own settings are not taken from the command line.")
    if any(part in ("_target_", "_partial_", "_args_") for part in name.split(".")):
        raise SafetyError(f"'{word}': a recipe never names classes to construct.")
    if re.search(r"\$\{[^}]*:", word):
        raise SafetyError(f"'{word}' calls a resolver; only ${{other.key}} is allowed.")
    if word.startswith("~"):
        return word
    if "=" not in word:
        raise RecipeError(f"'{word}' is no override; write key=value, +group=name or ~key.")
    if name == "recipe":
        return f"+{word.lstrip('+')}"
    if name in GROUPS:
        value = word.partition("=")[2]
        return _path_choice(name, value) or word.lstrip("+")
    return f"++{word.lstrip('+')}"


def _path_choice(group: str, value: str) -> str | None:
    """`model=./folder` is the `local` card with that path, given through the quoted value."""
    is_path = group == "model" and ("/" in value or value.startswith(".") or Path(value).is_dir())
    return None if not is_path else f"model={value}"


def is_model_path(word: str) -> bool:
    """Whether a normalised override gives a model by folder instead of by card."""
    name, _, value = word.partition("=")
    return (
        name == "model" and value not in choices("model") and _path_choice(name, value) is not None
    )


def _sources(words: list[str]) -> dict[str, YamlSource]:
    """The files that the words choose, longest prefix last to first: recipe, then groups."""
    chosen = {_group(w): w.partition("=")[2] for w in words if _group(w) and not is_model_path(w)}
    sources: dict[str, YamlSource] = {}
    if "recipe" in chosen:
        recipe = _source("recipe", chosen["recipe"])
        sources[""] = recipe
        for group, name in _defaults_of(recipe).items():
            _check_exists(group, name, f"{_short_path(recipe.path)}: ")
            chosen.setdefault(group, name)
    for group, name in chosen.items():
        if group and group != "recipe" and name not in ("null", ""):
            sources[group] = _source(group, name)
    return sources


def _defaults_of(recipe: YamlSource) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in recipe.content.get("defaults") or []:
        if isinstance(entry, dict):
            for key, value in entry.items():
                group = str(key).removeprefix("override").strip().lstrip("/")
                if group not in GROUPS:
                    raise RecipeError(
                        f"{_short_path(recipe.path)}: defaults: no group is named {group!r}"
                        f"{did_you_mean(group, GROUPS)}"
                    )
                if value is not None:
                    found[group] = str(value)
    return found


def _source(group: str, name: str) -> YamlSource:
    _check_exists(group, name, "")
    return _read(choices(group)[name])


def _check_exists(group: str, name: str, where: str) -> None:
    known = choices(group)
    if name not in known and name != "null":
        raise RecipeError(
            f"{where}{group}: no {group} is named {name!r}{did_you_mean(name, known)}"
        )


def _read(path: Path) -> YamlSource:
    return _read_version(path, path.stat().st_mtime_ns)


@cache
def _read_version(path: Path, mtime_ns: int) -> YamlSource:
    return read_yaml(path)


def _hydra_compose(words: list[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _register()
    words = [replaced for word in words for replaced in _as_local(word)]
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            config = hydra_compose(ROOT, overrides=words)
        values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise RecipeError(_hydra_sentence(error)) from None
    assert isinstance(values, dict), type(values)
    return {str(key): value for key, value in values.items()}


def _as_local(word: str) -> list[str]:
    if not is_model_path(word):
        return [word]
    path = word.partition("=")[2]
    if not Path(path).is_dir():
        known = did_you_mean(path, choices("model"))
        raise RecipeError(f"model: {path!r} is no folder and no card{known}")
    return ["model=local", f"++model.source.path='{path}'"]


def _register() -> None:
    """Put every file of our groups into Hydra's store, already checked; the user's files first."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    root = next(p for p in (r / f"{ROOT}.yaml" for r in config_roots()) if p.is_file())
    store.store(name=ROOT, node=OmegaConf.create(_read(root).content))
    for group in GROUPS:
        store.repo[group] = {}
        for name, path in choices(group).items():
            try:
                source = _read(path)
            except (RecipeError, SafetyError):
                continue  # a spoiled file that nobody chose is no reason to refuse the others
            package = "_global_" if group == "recipe" else (source.package or group)
            store.store(
                group=group, name=name, node=OmegaConf.create(source.content), package=package
            )


def _hydra_sentence(error: Exception) -> str:
    """Hydra's first useful line; its config search path means nothing to our users."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if cause is not None and "Error merging" in lines[0]:
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = " ".join(lines[:2])
    return text if text.endswith(".") else f"{text}."


def _group(word: str) -> str:
    name = word.lstrip("+").partition("=")[0]
    return name if name in GROUPS and not word.startswith("~") else ""


def _short_path(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
