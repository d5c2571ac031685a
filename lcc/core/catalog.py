"""The folder is the registry: a choice named `wanda` is a class with that `word` on its shelf."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from lcc.core.decode import decode_card
from lcc.core.errors import RecipeError
from lcc.core.nearest import did_you_mean

STAGES = "stages"
SHELVES = (STAGES, "adapters", "baselines", "clipping", "criteria", "engines", "exporters",
           "launchers", "metrics", "objectives", "optimizers", "quantizers", "readers",
           "samplers", "trackers")  # fmt: skip


def names(shelf: str) -> list[str]:
    """Every name that may stand on `shelf`, sorted: our own classes' words and entry points."""
    return sorted({*_own(shelf), *_plugins(shelf)})


@cache
def card(shelf: str, name: str) -> type[Any]:
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
        raise RecipeError(
            f"no {_singular(shelf)} is named {name!r}{did_you_mean(name, names(shelf))}"
        )
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
            cls = card(self.shelf, value["name"])
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
        from lcc.core.decode import card_schema

        if self.shelf in _DESCRIBING:  # a choice within a choice of the same shelf, without end
            return {"anyOf": [{"enum": names(self.shelf)}, {"type": "object"}]}
        _DESCRIBING.append(self.shelf)
        try:
            return self._described(card_schema)
        finally:
            _DESCRIBING.pop()

    def _described(self, card_schema: Any) -> dict[str, Any]:
        options = [card_schema(card(self.shelf, name), name) for name in names(self.shelf)]
        nothing = [{"type": "null"}] if self.optional else []
        return {"anyOf": [{"enum": names(self.shelf)}, *options, *nothing]}


def _package(shelf: str) -> str:
    return f"lcc.{shelf}" if shelf == STAGES else f"lcc.methods.{shelf}"


def _singular(shelf: str) -> str:
    irregular = {"criteria": "criterion", "clipping": "clipping"}
    return irregular.get(shelf, shelf.removesuffix("s"))


def _files(shelf: str) -> list[str]:
    package = importlib.import_module(_package(shelf))
    return [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]


def _words(shelf: str, file: str) -> dict[str, type[Any]]:
    """The classes that `file` defines, by their words."""
    module = importlib.import_module(f"{_package(shelf)}.{file}")
    classes = {value.word: value for value in vars(module).values()
               if isinstance(value, type) and value.__module__ == module.__name__
               and "word" in vars(value)}  # fmt: skip
    assert classes, f"{module.__name__} defines no class with a word"
    return classes


@cache
def _own(shelf: str) -> dict[str, type[Any]]:
    return {word: cls for file in _files(shelf) for word, cls in _words(shelf, file).items()}


@cache
def _plugins(shelf: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=f"lcc.{shelf}")}
