"""Hydra composition: command-line words and YAML files become one plain dict with known origins."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.config.cards import Mistake, Mistakes
from lcc.config.yaml_files import (
    FORBIDDEN_KEYS,
    GROUPS,
    RESOLVER,
    YamlSource,
    check_exists,
    choices,
    config_roots,
    defaults_of,
    read_yaml,
    refuse_unsafe,
    short_path,
)
from lcc.core.errors import LccError, RecipeError, SafetyError, did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Words of a command line: what is refused of them, and how they are read.

KEY = re.compile(r"[\w.\-/]+")


def check_word(word: str) -> None:
    """Refuse what could run code or is no override at all, in one sentence."""
    name = word.lstrip("+~").partition("=")[0]
    if re.split(r"[./@]", name)[0] == "hydra":
        raise SafetyError(f"'{word}': Hydra's own settings are not taken from the command line.")
    if any(part in FORBIDDEN_KEYS for part in name.split(".")):
        raise SafetyError(f"'{word}': a recipe never names classes to construct.")
    if RESOLVER.search(word):
        raise SafetyError(f"'{word}' calls a resolver; only ${{other.key}} is allowed.")
    if "=" not in word and not word.startswith("~"):
        raise RecipeError(f"'{word}' is no override; write key=value, +recipe=NAME or ~key.")
    if not KEY.fullmatch(name):
        raise RecipeError(f"'{word}': {name!r} is no key; write key=value, for example seed=1.")
    parsed(word)


def parsed(word: str) -> Override:
    """One word by Hydra's grammar; raises RecipeError where it is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        raise unreadable(word) from None


def unreadable(word: str) -> RecipeError:
    """The sentence for what the parser refuses; its own words name tokens, which help nobody."""
    return RecipeError(
        f"'{word}': its value cannot be read; allowed are a number, true, false, null, text, "
        "[a, list], {a: mapping} and, with -m, 1,2 or range(1,3) or choice(a,b). Put text with "
        "special characters in quotes."
    )


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
            is_about = key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.")
            if name not in GROUPS and is_about:
                return f"command line '{override.removeprefix('++')}'"
        for prefix, source in self.sources.items():
            inside = key.removeprefix(prefix).lstrip(".") if key.startswith(prefix) else None
            while inside:
                if inside in source.lines:
                    return f"{short_path(source.path)}:{source.lines[inside]}"
                inside = inside.rpartition(".")[0]
        return ""

    def explain(self, mistakes: Mistakes) -> RecipeError:
        """The same mistakes, each with the place it was made."""
        return RecipeError("\n".join(self._line(mistake) for mistake in mistakes.mistakes))

    def _line(self, mistake: Mistake) -> str:
        origin = self.origin(mistake.key)
        return (
            f"{origin}: {mistake.key}: {mistake.sentence}"
            if origin
            else (f"{mistake.key}: {mistake.sentence}")
        )


def compose(overrides: list[str]) -> Composed:
    """Compose the words of a command line into plain values.

    Raises RecipeError or SafetyError with one sentence; imports neither torch nor the environment.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    words = [normalise(word) for word in overrides]
    sources = _sources(words)
    places = Composed(values={}, overrides=words, sources=sources)
    try:
        values = _hydra_compose(words)
    except (HydraException, OmegaConfBaseException) as error:
        raise RecipeError(_hydra_sentence(error, places)) from None
    except RecursionError:
        raise RecipeError("defaults: these recipes name each other in a circle.") from None
    _drop_other_plans_options(values, words, sources)
    composed = Composed(values=values, overrides=words, sources=sources)
    refuse_unsafe(values, lambda key: f"{origin}: " if (origin := composed.origin(key)) else "")
    _check_sections(values, composed)
    return composed


def _drop_other_plans_options(
    values: dict[str, Any], words: list[str], sources: dict[str, YamlSource]
) -> None:
    """Options that a recipe gives to a step of its own plan mean nothing to another plan, in place.

    Without this `+recipe=x plan=w4` would fail on `plan.heal`, which only x's plan knows.
    """
    recipe, chosen = sources.get(""), sources.get("plan")
    own = defaults_of(recipe).get("plan") if recipe else None
    if recipe is None or own is None or chosen is None or values.get("plan") is None:
        return
    planned = _source("plan", own).content
    typed = {
        w.lstrip("+").partition("=")[0].split(".")[1] for w in words if w.lstrip("+").startswith("plan.")
    }
    for name in recipe.content.get("plan") or {}:
        if name in planned and name not in chosen.content and name not in typed:
            values["plan"].pop(name, None)


def normalise(word: str) -> str:
    """Our small dialect: `recipe=x` means `+recipe=x`, and a value may be set though unwritten."""
    check_word(word)
    if word.startswith("~"):
        return word
    name = word.lstrip("+").partition("=")[0]
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
    return name == "model" and value not in choices("model") and _path_choice(name, value) is not None


def _sources(words: list[str]) -> dict[str, YamlSource]:
    """The files that the words choose, longest prefix last to first: recipe, then groups."""
    chosen = {_group(w): w.partition("=")[2] for w in words if _group(w) and not is_model_path(w)}
    sources: dict[str, YamlSource] = {}
    recipes = [w.partition("=")[2] for w in words if _group(w) == "recipe"]
    if len(recipes) > 1:
        raise RecipeError(f"recipe: got {' and '.join(recipes)}; choose one.")
    if "recipe" in chosen:
        recipe = _source("recipe", chosen["recipe"])
        sources[""] = recipe
        _check_sections(recipe.content, Composed(values={}, overrides=[], sources=sources))
        for group, name in defaults_of(recipe).items():
            chosen.setdefault(group, name)
    for group, name in chosen.items():
        if group and group != "recipe" and name != "null":
            sources[group] = _source(group, name)
    return sources


def _check_sections(values: dict[str, Any], places: Composed) -> None:
    """Groups, stages and plan hold options; a bare name there is a choice made the wrong way."""
    for key in (*(group for group in GROUPS if group != "recipe"), "stages"):
        value = values.get(key)
        if value is None or isinstance(value, dict):
            continue
        way = (
            "write each stage as 'NAME: {}'"
            if key == "stages"
            else f"choose an entry under defaults: '- override /{key}: NAME'"
        )
        mistake = Mistake(key, f"expected a mapping of options, got {value!r}; {way}.")
        raise places.explain(Mistakes([mistake]))


def smoke_datasets() -> dict[str, str]:
    """Task → the packaged dataset that stands in for its own under `scale=smoke`."""
    return dict(_source("scale", "smoke").content["datasets"])


def _source(group: str, name: str) -> YamlSource:
    check_exists(group, name, "")
    return _read(choices(group)[name])


def _read(path: Path) -> YamlSource:
    """The file, read once per version; its messages name it as seen from where the user stands."""
    try:
        return _read_version(path, path.stat().st_mtime_ns)
    except LccError as error:
        raise type(error)(str(error).replace(str(path), short_path(path))) from None


@cache
def _read_version(path: Path, mtime_ns: int) -> YamlSource:
    return read_yaml(path)


def _hydra_compose(words: list[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    words = [replaced for word in words for replaced in _as_local(word)]
    _register(words)
    GlobalHydra.instance().clear()
    with initialize(version_base="1.3", config_path=None):
        config = hydra_compose(ROOT, overrides=words)
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
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


def _register(words: list[str]) -> None:
    """Put the files that the words reach into Hydra's store, already checked; the user's files first.

    A recipe reaches a dozen of some 140 files, and checking one takes longer than composing it.
    """
    root = next(p for p in (r / f"{ROOT}.yaml" for r in config_roots()) if p.is_file())
    reached = _reached(root, words)
    files = [("", ROOT, root)]
    for group in GROUPS:
        files += [
            (group, n, p) for n, p in choices(group).items() if reached is None or (group, n) in reached
        ]
    _stored(tuple((*file, str(file[2].absolute()), file[2].stat().st_mtime_ns) for file in files))


def _reached(root: Path, words: list[str]) -> set[tuple[str, str]] | None:
    """Every (group, choice) that the root, the recipes or the words name, overridden ones included.

    None where a file of a group has a defaults list of its own: then any file may be reached.
    """
    reached: set[tuple[str, str]] = set()
    todo = [(_group(word), word.partition("=")[2]) for word in words if _group(word)]
    for entry in _read(root).content.get("defaults") or []:
        todo += [(str(g), str(n)) for g, n in entry.items()] if isinstance(entry, dict) else []
    while todo:
        group, name = todo.pop()
        path = choices(group).get(name) if group in GROUPS else None
        if path is None or (group, name) in reached:
            continue
        reached.add((group, name))
        try:
            entries = _read(path).content.get("defaults") or []
        except (RecipeError, SafetyError):
            continue  # whoever chose it is told by `_sources`
        if entries and group != "recipe":
            return None
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, str):
                todo.append(("recipe", entry))
            elif isinstance(entry, dict):
                todo += [
                    (str(k).removeprefix("override").strip().lstrip("/"), str(n)) for k, n in entry.items()
                ]
    return reached


@lru_cache(maxsize=1)  # What the store holds already is not put there again.
def _stored(files: tuple[tuple[str, str, Path, str, int], ...]) -> None:
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    for group in GROUPS:
        store.repo[group] = {}
    for group, name, path, *_ in files:
        try:
            source = _read(path)
        except (RecipeError, SafetyError):
            if not group:
                raise
            continue  # a spoiled file that nobody chose is no reason to refuse the others
        package = "_global_" if group == "recipe" else (source.package or group or None)
        store.store(group=group or None, name=name, node=OmegaConf.create(source.content), package=package)


def _hydra_sentence(error: Exception, places: Composed) -> str:
    """Hydra's first useful line, with our key and place; its search path means nothing to users."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    deleted = re.match(r"Could not delete from config\. '([^']+)' does not exist", lines[0])
    if deleted:
        return _nothing_to_delete(deleted.group(1), places)
    key = str(getattr(error, "full_key", None) or "")
    where = f"{origin}: " if key and (origin := places.origin(key)) else ""
    text = lines[0].removesuffix(f"full_key: {key}").strip() if key else lines[0]
    text = re.sub(r"^\w+ while resolving interpolation: ", "", text)
    sentence = f"{where}{key}: {text[0].lower()}{text[1:]}" if key else text
    return sentence if sentence.endswith(".") else f"{sentence}."


def _nothing_to_delete(key: str, places: Composed) -> str:
    parent = key.rpartition(".")[0]
    known = [
        ".".join([*filter(None, [prefix]), line])
        for prefix, source in places.sources.items()
        for line in source.lines
    ]
    siblings = {k for k in known if k.rpartition(".")[0] == parent}
    return f"'~{key}': nothing stands at {key!r} to take away{did_you_mean(key, siblings)}"


def _group(word: str) -> str:
    name = word.lstrip("+").partition("=")[0]
    return name if name in GROUPS and not word.startswith("~") else ""
