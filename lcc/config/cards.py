"""Cards: plain dicts decoded into frozen dataclasses, strictly; every mistake is one sentence with its key.

A type that a recipe fills is a `@card` dataclass. pydantic does the checking in strict JSON mode
(so `true` is no number and `"4"` is no 4); this module turns its findings into our sentences.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import core_schema

from lcc.core.errors import RecipeError, did_you_mean

T = TypeVar("T")
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's words for extra keys


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def card(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that refuses unknown keys and wrong types."""
    decorate: Any = pydantic_dataclass(
        frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    )
    decorated: type[T] = decorate(cls)
    return decorated


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One thing wrong with a recipe: the full key and a sentence about it."""

    key: str
    sentence: str


class Mistakes(RecipeError):
    """Every mistake found in one decoding, one line each."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        super().__init__("\n".join(f"{m.key}: {m.sentence}" for m in mistakes))


def decode(cls: type[T], node: Any, where: str = "") -> T:
    """`node` (JSON-like) as a `cls`; raises Mistakes with keys that start with `where`."""
    try:
        return decode_card(cls, node)
    except ValidationError as error:
        mistakes = list(_mistakes(error, cls, node, where))
        raise Mistakes(_without_echoes(mistakes)) from None


def decode_card(cls: type[T], node: Any) -> T:
    """`node` as a `cls`, raising pydantic's own error (nested choices are decoded by this)."""
    decoded: T = _adapter(cast(Hashable, cls)).validate_json(json.dumps(node), strict=True)
    return decoded


def card_schema(cls: type[Any], name: str | None = None) -> dict[str, Any]:
    """JSON Schema of a card; with `name`, of the mapping form `{name: …, options}`."""
    schema = dict(_adapter(cast(Hashable, cls)).json_schema())
    if name is not None:
        # It will stand inside another schema, whose definitions are not these.
        schema = _inlined(schema, schema.pop("$defs", {}))
        schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
        schema["required"] = ["name", *schema.get("required", [])]
    return schema


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """`node` with every reference replaced by what it refers to; cards never contain themselves."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    name = str(node.get("$ref", "")).rpartition("/")[2]
    if name in definitions:
        return _inlined({**definitions[name], **{k: v for k, v in node.items() if k != "$ref"}}, definitions)
    return {key: _inlined(value, definitions) for key, value in node.items()}


@cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, cls))


def _mistakes(error: ValidationError, cls: Any, node: Any, where: str) -> Iterator[Mistake]:
    for item in error.errors(include_url=False):
        # An unknown key stands last and is the user's own word, whatever it looks like.
        own = item["loc"][-1:] if item["type"] in UNKNOWN else ()
        loc = [p for p in item["loc"][: len(item["loc"]) - len(own)] if not _is_tag(p)] + [*own]
        key = ".".join([where, *map(str, loc)]) if where else ".".join(map(str, loc))
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            value = _value_at(node, loc)
            options = value if isinstance(value, dict) else {}
            yield from _mistakes(inner, _choice_type(cls, loc, options), options, key)
        else:
            yield Mistake(key or where or "recipe", _sentence(item, cls, node, loc))


def _sentence(item: Any, cls: Any, node: Any, loc: list[Any]) -> str:
    kind, got = item["type"], _short(item.get("input"))
    if kind in UNKNOWN:
        owner = _type_at(cls, loc[:-1], node)
        allowed = _field_names(owner)
        return f"unknown key {loc[-1]!r}{did_you_mean(str(loc[-1]), allowed)}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return "is missing; give it a value."
    if kind == "literal_error":
        expected = item["ctx"]["expected"]
        choices = [c.strip(" '") for c in expected.replace(" or ", ", ").split(",")]
        return f"{got} is not one of {expected}{_near(str(item.get('input')), choices)}"
    if kind == "value_error":
        return _full_stop(str(item["ctx"]["error"]))
    if kind.endswith(("_type", "_parsing")):
        return f"expected {_kind_word(kind)}, got {got}."
    return _full_stop(f"{item['msg'][0].lower()}{item['msg'][1:]}, got {got}")


def _near(got: str, choices: list[str]) -> str:
    hint = did_you_mean(got, choices)
    return hint if "mean" in hint else "."


def _kind_word(kind: str) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "text",
        "dict": "a mapping",
        "list": "a list",
        "tuple": "a list",
        "dataclass": "a mapping",
        "none_required": "null",
    }
    stem = kind.removesuffix("_type").removesuffix("_parsing")
    return words.get(stem, stem.replace("_", " "))


def _full_stop(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _without_echoes(mistakes: list[Mistake]) -> list[Mistake]:
    """pydantic reports one sentence per arm of a union: make them one for each key."""
    by_key: dict[str, list[str]] = {}
    for mistake in mistakes:
        sentences = by_key.setdefault(mistake.key, [])
        if mistake.sentence not in sentences:
            sentences.append(mistake.sentence)
    return [Mistake(key, " Or: ".join(sentences)) for key, sentences in by_key.items()]


def _is_tag(part: Any) -> bool:
    """Union arms appear in pydantic's locations as type names, e.g. `list[str]`."""
    return isinstance(part, str) and (
        "[" in part
        or part in ("str", "int", "float", "bool", "none")
        or part[:1].isupper()
        or part.startswith("constrained-")
    )


def _value_at(node: Any, loc: list[Any]) -> Any:
    for part in loc:
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            return None
    return node


def _field_names(cls: Any) -> list[str]:
    # `fields` leaves out ClassVars such as `revision`, which are no keys of a recipe.
    return [f.name for f in dataclasses.fields(cls) if f.init] if _is_card(cls) else []


def _is_card(cls: Any) -> bool:
    return isinstance(cls, type) and dataclasses.is_dataclass(cls)


def _type_at(cls: Any, loc: list[Any], node: Any) -> Any:
    """The dataclass that stands at `loc` below `cls`, or None."""

    for part in loc:
        hint = _unwrapped(_hints(cls).get(str(part))) if _field_names(cls) else _element(cls)
        node = _value_at(node, [part])
        choice = next((a for a in get_args(hint) if isinstance(a, Choice)), None)
        if choice is not None and isinstance(node, dict):
            hint = find_card(choice.shelf, str(node.get("name")))
        cls = hint
    return cls


def _choice_type(cls: Any, loc: list[Any], options: dict[str, Any]) -> Any:
    """The card class that the choice at `loc` names in `options`, found through its shelf."""

    owner = cls
    for part in loc:
        hint = _hints(owner).get(str(part)) if _field_names(owner) else _element(owner)
        choice = next((a for a in _annotations(hint) if isinstance(a, Choice)), None)
        if choice is not None and options.get("name"):
            return find_card(choice.shelf, str(options["name"]))
        owner = _unwrapped(hint)
    return None


def _annotations(hint: Any) -> Iterator[Any]:
    """Every Annotated marker inside `hint`, however wrapped in Optional or tuple."""
    for argument in get_args(hint):
        yield argument
        yield from _annotations(argument)


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except NameError:
        return {}


def _unwrapped(hint: Any) -> Any:
    """`X | None` is X."""
    arms = [a for a in get_args(hint) if a is not type(None)]
    is_union = type(None) in get_args(hint)
    return arms[0] if is_union and len(arms) == 1 else hint


def _element(hint: Any) -> Any:
    """The value type of a mapping or a list."""
    arguments = get_args(hint)
    if get_origin(hint) in (dict, list, tuple) and arguments:
        return arguments[-1] if get_origin(hint) is dict else arguments[0]
    return None


# The folder is the registry: a choice named `wanda` is a class with that `word` on its shelf.

STAGES = "stages"
SHELVES = (STAGES, "adapters", "baselines", "clipping", "criteria", "engines", "exporters",
           "launchers", "metrics", "objectives", "optimizers", "quantizers", "readers",
           "samplers", "trackers")  # fmt: skip


def names(shelf: str) -> list[str]:
    """Every name that may stand on `shelf`, sorted: our own classes' words and entry points."""
    return sorted({*_own(shelf), *_plugins(shelf)})


@cache
def find_card(shelf: str, name: str) -> type[Any]:
    """The class that `name` stands for on `shelf`.

    Raises RecipeError naming the nearest choice when there is none.
    """
    plugins = _plugins(shelf)
    if name in plugins:
        return plugins[name].load()  # type: ignore[no-any-return]
    if name in _files(shelf) and name in (page := _words(shelf, name)):
        return page[name]  # most choices are a file of their own: the others stay unread
    own = _own(shelf)
    if name not in own:
        raise RecipeError(f"no {_singular(shelf)} is named {name!r}{did_you_mean(name, names(shelf))}")
    return own[name]


def name_of(value: object) -> str:
    """The YAML word of a card or stage."""
    cls = value if isinstance(value, type) else type(value)
    word: str = getattr(cls, "word", "") or cls.__module__.rpartition(".")[2]
    return word


_DESCRIBING: list[str] = []  # shelves whose schema is being made


@dataclass(frozen=True)
class Choice:
    """Annotation of a field whose value is a name on a shelf, or a mapping `{name: …, options}`."""

    shelf: str
    optional: bool = False  # null means none of them

    def decode(self, value: Any) -> Any:
        if value is None and self.optional:
            return None
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            allowed = ", ".join(names(self.shelf))
            raise ValueError(f"expected one of {allowed}, or a mapping with `name:`, got {value!r}")
        try:
            cls = find_card(self.shelf, value["name"])
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return decode_card(cls, {k: v for k, v in value.items() if k != "name"})

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if hasattr(value, "__dataclass_fields__") else self.decode(value)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:

        if self.shelf in _DESCRIBING:  # a choice within a choice of the same shelf, without end
            return {"anyOf": [{"enum": names(self.shelf)}, {"type": "object"}]}
        _DESCRIBING.append(self.shelf)
        try:
            return self._described(card_schema)
        finally:
            _DESCRIBING.pop()

    def _described(self, card_schema: Any) -> dict[str, Any]:
        options = [card_schema(find_card(self.shelf, name), name) for name in names(self.shelf)]
        nothing = [{"type": "null"}] if self.optional else []
        return {"anyOf": [{"enum": names(self.shelf)}, *options, *nothing]}


def _package(shelf: str) -> str:
    return f"lcc.{shelf}" if shelf == STAGES else f"lcc.methods.{shelf}"


def _singular(shelf: str) -> str:
    irregular = {"criteria": "criterion", "clipping": "clipping"}
    return irregular.get(shelf, shelf.removesuffix("s"))


@cache
def _files(shelf: str) -> dict[str, str]:
    """File → module, of the shelf's folder and of the folders in it."""
    name = _package(shelf)
    modules = pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}.")
    files = {m.name.rpartition(".")[2]: m.name for m in modules if not m.ispkg}
    return {file: module for file, module in files.items() if not file.startswith("_")}


def _words(shelf: str, file: str) -> dict[str, type[Any]]:
    """The classes that `file` defines, by their words."""
    module = importlib.import_module(_files(shelf)[file])
    classes: dict[str, type[Any]] = {
        vars(value)["word"]: value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and "word" in vars(value)
    }
    # In a folder of a shelf, cards stand beside what they share.
    assert classes or module.__package__ != _package(shelf), f"{file} defines no class with a word"
    return classes


@cache
def _own(shelf: str) -> dict[str, type[Any]]:
    return {word: cls for file in _files(shelf) for word, cls in _words(shelf, file).items()}


@cache
def _plugins(shelf: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=f"lcc.{shelf}")}


# Typed objects back to plain JSON, with the name and revision of every choice: what keys hash.

FORMAT = 1


def describe(value: Any) -> Any:
    """`value` as JSON-like data; a choice carries its `name` and `revision`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {**_identity(value), **fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    assert value is None or isinstance(value, str | int | float | bool), repr(value)
    return value


def identify(value: Any) -> Any:
    """`describe` without the fields a card calls `unkeyed`: those that change no result."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        left_out = getattr(type(value), "unkeyed", ())
        fields = [f.name for f in dataclasses.fields(value) if f.name not in left_out]
        return {**_identity(value), **{name: identify(getattr(value, name)) for name in fields}}
    if isinstance(value, dict):
        return {str(key): identify(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [identify(item) for item in value]
    return describe(value)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(value: Any) -> dict[str, Any]:
    cls = type(value)
    revision = getattr(cls, "revision", None)
    if revision is None:
        return {}
    return {"name": name_of(value), "revision": revision}
