"""Serve a model over HTTP by OpenAI's API, with a page to try it; on this machine only."""

from __future__ import annotations

import dataclasses
from typing import Any

from lcc.cli.arguments import Arguments
from lcc.cli.commands._models import recipe_and_model
from lcc.core.errors import RecipeError, ResourceError, did_you_mean

USAGE = """usage: lcc serve [CHECKPOINT] [+recipe=NAME | model=PATH] [engine=NAME] [serve.OPTION=…]

  lcc serve model=./folder                     chats, completes or embeds, as the model can
  lcc serve model=./folder task=translation    /v1/translate by the task's template
  lcc serve                                    the last run's last model and its task
  lcc serve quantize serve.port=8081 engine=transformers

Listens on 127.0.0.1 unless serve.host says otherwise, which needs a key: in LCC_API_KEY, or in the
file that serve.key_file names. docs/serving.md lists every option; --cfg prints them."""


def main(arguments: Arguments) -> int:
    if len(arguments.words) > 1:
        raise RecipeError(f"one checkpoint at a time, not {' and '.join(arguments.words)}.")
    own, rest = split(arguments.overrides)
    options = options_of(own)
    if arguments.cfg:
        return _print(options, as_json=arguments.json)
    key = options.key()
    _require_packages()
    recipe, folder = recipe_and_model(dataclasses.replace(arguments, overrides=rest), "serve")
    from lcc.serving.model import opened
    from lcc.serving.server import serve

    serve(opened(folder, recipe, options, str(own.get("engine", "transformers"))), key)
    return 0


def split(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`serve.…` and `engine` by name, and the words that are the recipe's."""
    from lcc.config.compose import check_word, parsed

    own: dict[str, Any] = {}
    rest = []
    for word in words:
        name = word.lstrip("+").partition("=")[0]
        if name.split(".")[0] not in ("serve", "engine"):
            rest.append(word)
            continue
        check_word(word)
        own[name] = parsed(word).value()
    return own, rest


def options_of(own: dict[str, Any]) -> Any:
    """The options that `serve.…` words give; raises RecipeError with the nearest names."""
    from lcc.config.cards import decode
    from lcc.serving.model import ServeOptions

    node = {}
    for name, value in own.items():
        if name == "engine":
            continue
        head, _, option = name.partition(".")
        if head != "serve" or not option:
            raise RecipeError(f"'{name}' is no option{did_you_mean(name, ['engine', 'serve.port'])}")
        node[option] = value
    return decode(ServeOptions, node, "serve")


def _print(options: Any, *, as_json: bool) -> int:
    import json

    values = dataclasses.asdict(options)
    lines = (f"serve.{name}={json.dumps(value)}" for name, value in values.items())
    print(json.dumps(values, indent=2) if as_json else "\n".join(lines))
    return 0


def _require_packages() -> None:
    from importlib.util import find_spec

    wanted = ("starlette", "uvicorn", "prometheus_client")
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise ResourceError(f"serving needs {', '.join(missing)}; pip install 'lcc[serve]'.")
