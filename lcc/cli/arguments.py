"""Arguments of one command line: words, Hydra overrides and flags after the verb, sorted apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lcc.core.errors import RecipeError, did_you_mean

SWITCHES = ("json", "cfg", "multirun", "dry-run", "yes", "chat", "help")
VALUED = ("text", "out")
SHORT = {"-m": "--multirun", "-h": "--help"}


@dataclass(frozen=True)
class Arguments:
    """One command line after its verb; `options` holds `--name VALUE` and the rarer switches."""

    verb: str = ""
    words: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    json: bool = False
    cfg: bool = False
    multirun: bool = False
    dry_run: bool = False
    options: dict[str, str] = field(default_factory=dict)

    @property
    def help(self) -> bool:
        """Whether `--help` was given."""
        return "help" in self.options

    @property
    def yes(self) -> bool:
        """`--yes`: go on without asking."""
        return "yes" in self.options


def parse(argv: Sequence[str], verb: str = "") -> Arguments:
    """`argv` (without program and verb) as Arguments; raises RecipeError for an unknown flag.

    After a bare `--` everything is a word or an override, whatever it starts with.
    """
    words: list[str] = []
    overrides: list[str] = []
    options: dict[str, str] = {}
    rest = iter(argv)
    for argument in rest:
        argument = SHORT.get(argument, argument)
        if argument == "--":
            for literal in rest:
                _sort(literal, words, overrides)
        elif argument.startswith("-") and argument != "-":
            name, value = _flag(argument, rest)
            options[name] = value
        else:
            _sort(argument, words, overrides)
    switches = {n: options.pop(n, None) is not None for n in ("json", "cfg", "multirun", "dry-run")}
    return Arguments(
        verb=verb,
        words=words,
        overrides=overrides,
        options=options,
        json=switches["json"],
        cfg=switches["cfg"],
        multirun=switches["multirun"],
        dry_run=switches["dry-run"],
    )


def emit(data: Any, as_json: bool, text: str) -> None:
    """Print `data` as JSON for programs, or `text` for people."""
    print(json.dumps(data, ensure_ascii=False, indent=2) if as_json else text)


def _sort(argument: str, words: list[str], overrides: list[str]) -> None:
    is_override = "=" in argument or argument.startswith(("~", "+"))
    (overrides if is_override else words).append(argument)


def _flag(argument: str, rest: Iterator[str]) -> tuple[str, str]:
    """The name and value of one flag, taking the value from `rest` where `=` does not bring it."""
    spelled, equals, value = argument.partition("=")
    name = spelled.removeprefix("--")
    known = [f"--{known}" for known in (*SWITCHES, *VALUED)]
    if spelled not in known:
        raise RecipeError(f"unknown flag {spelled!r}{did_you_mean(spelled, known)}")
    if name in VALUED:
        text = value if equals else next(rest, None)
        if text is None:
            raise RecipeError(f"{spelled}: needs a value; write {spelled} VALUE.")
        return name, text
    if equals:
        raise RecipeError(f"{spelled}: takes no value, got {value!r}; write {spelled} alone.")
    return name, "true"
