"""YAML files from strangers: bounded, without aliases or resolvers, with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, KeyValidationError

from lcc.core.errors import RecipeError, SafetyError, did_you_mean

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_NODES = 20_000
FORBIDDEN_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
RESOLVER = re.compile(r"\$\{[^}]*:")


@dataclass(frozen=True)
class YamlSource:
    """One file: its plain content, its `# @package` header and the line of every dotted key."""

    path: Path
    content: dict[str, Any]
    package: str | None
    lines: dict[str, int] = field(default_factory=dict)


def read_yaml(path: Path) -> YamlSource:
    """Read `path` without running anything it says.

    Raises SafetyError for aliases, resolvers, `hydra:` and `_target_` keys and for files too large
    or too deep; RecipeError for what is no YAML mapping.
    """
    if path.stat().st_size > MAX_BYTES:
        raise SafetyError(f"{path}: larger than {MAX_BYTES // 1024} KB; a recipe is a page of text.")
    try:
        text = path.read_text(encoding="utf-8")
        _check_shape(path, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content: Any = OmegaConf.to_container(OmegaConf.create(text)) if root is not None else {}
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is no text in UTF-8; save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise RecipeError(_syntax(path, error)) from None
    except GrammarParseError as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise RecipeError(
            f"{path}: {key}an interpolation cannot be read; only ${{other.key}} is allowed."
        ) from None
    except KeyValidationError:
        raise RecipeError(f"{path}: a key is null or no word; write every key as text.") from None
    if not isinstance(root, yaml.MappingNode | None):
        raise RecipeError(f"{path}: must be a mapping of keys to values, not a list or a word.")
    lines: dict[str, int] = {}
    if root is not None:
        _collect_lines(root, "", lines)
    refuse_unsafe(content, lambda key: f"{path}:{lines.get(key, 1)}: ")
    header = re.match(r"(?:\s*#.*\n)*?\s*#\s*@package\s+(\S+)", text)
    return YamlSource(path, content, header.group(1) if header else None, lines)


def refuse_unsafe(content: Any, where: Any, key: str = "") -> None:
    """Raise SafetyError for keys and interpolations that could run code or reach outside."""
    if isinstance(content, dict):
        for name, value in content.items():
            inner = f"{key}.{name}" if key else str(name)
            if name in FORBIDDEN_KEYS or inner == "hydra" or inner.startswith("hydra/"):
                raise SafetyError(
                    f"{where(inner)}{inner}: {str(name)!r} is refused: a recipe names things from "
                    "configs/ and never classes, callbacks or Hydra's own settings."
                )
            refuse_unsafe(value, where, inner)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            refuse_unsafe(value, where, f"{key}.{index}")
    elif isinstance(content, str) and RESOLVER.search(content):
        raise SafetyError(
            f"{where(key)}{key}: {content!r} calls a resolver, which could reach the environment; "
            "only ${other.key} is allowed."
        )


def _check_shape(path: Path, text: str) -> None:
    """Walk the event stream, which expands nothing, and bound what a loader would build."""
    depth = 0
    for nodes, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader), 1):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise SafetyError(
                f"{path}:{line}: alias '*{event.anchor}' is refused (aliases can blow up in memory "
                "or contain themselves); write the value out or use ${other.key}."
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            what = f"deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else "too many nodes"
            raise SafetyError(f"{path}:{line}: {what}; refused.")


def _collect_lines(node: yaml.Node, prefix: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            lines[name] = key.start_mark.line + 1
            _collect_lines(value, name, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{prefix}.{index}"] = value.start_mark.line + 1
            _collect_lines(value, f"{prefix}.{index}", lines)


def _syntax(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error)
    return f"{path}{line}: not valid YAML: {problem}."


# Where configs and recipes lie: the user's own folders first, then those that came with lcc.

PACKAGE = Path(__file__).resolve().parents[1]


def config_roots() -> list[Path]:
    """Folders that hold config groups, the one that wins first."""
    return _roots("configs")


def recipe_roots() -> list[Path]:
    """Folders that hold recipes, the one that wins first."""
    return _roots("recipes")


def packaged_file(relative: str) -> Path | None:
    """The file `dataset/tiny/x.jsonl` of the first config root that has it."""
    paths = (root / relative for root in config_roots())
    return next((path for path in paths if path.is_file()), None)


def _roots(name: str) -> list[Path]:
    own = Path.cwd() / name
    checkout = PACKAGE.parent / name
    # A checkout has no lcc/_packaged, and an installed wheel has no configs/ beside the package.
    shipped = PACKAGE / "_packaged" / name
    roots = [own, shipped if shipped.is_dir() else checkout]
    unique = dict.fromkeys(path.resolve() for path in roots if path.is_dir())
    return list(unique)


# The config groups and the files that fill them: the user's own before the packaged ones.

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
    files: dict[str, Path] = dict(_FILES) if group == "recipe" else {}
    for root in roots:
        for path in sorted(root.glob("*.yaml")):
            files.setdefault(path.stem, path)
    return files


def defaults_of(recipe: YamlSource) -> dict[str, str]:
    """Group → choice of the recipe's defaults list, each entry checked."""
    entries = recipe.content.get("defaults") or []
    path = short_path(recipe.path)
    if not isinstance(entries, list):
        raise RecipeError(
            f"{path}:{recipe.lines.get('defaults', 1)}: defaults: expected a list "
            f"of '- override /group: NAME', got {entries!r}."
        )
    selected: dict[str, str] = {}
    for index, entry in enumerate(entries):
        place = f"{path}:{recipe.lines.get(f'defaults.{index}', 1)}: "
        if entry == recipe.path.stem or not isinstance(entry, str | dict):
            raise RecipeError(
                f"{place}defaults: got {entry!r}; write the name of another recipe "
                "or 'override /group: NAME'."
            )
        if isinstance(entry, str) and entry != "_self_":
            check_exists("recipe", entry, f"{place}defaults: ")
        for key, value in entry.items() if isinstance(entry, dict) else ():
            group = _default_group(str(key), value, f"{place}defaults")
            if value is not None:
                check_exists(group, str(value), place)
                selected[group] = str(value)
    return selected


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
        raise RecipeError(f"{where}{group}: no {group} is named {name!r}{did_you_mean(name, known)}")


def short_path(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
