"""Words of a command line: what is refused of them, and how they are read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lcc.core.errors import RecipeError, SafetyError
from lcc.core.yaml_source import FORBIDDEN_KEYS, RESOLVER

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

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
