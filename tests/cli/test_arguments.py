"""The command line after the verb, sorted into words, overrides and flags."""

from __future__ import annotations

import json

import pytest

from lcc.cli.arguments import Arguments, emit, parse
from lcc.core.errors import RecipeError


def test_words_overrides_and_flags_are_told_apart() -> None:
    argv = ["gc", "+recipe=tiny", "clip.max_norm=0.5", "~plan.heal", "--json", "-m", "--dry-run", "--cfg"]
    assert parse(argv) == Arguments(
        words=["gc"],
        overrides=["+recipe=tiny", "clip.max_norm=0.5", "~plan.heal"],
        json=True,
        multirun=True,
        dry_run=True,
        cfg=True,
    )


@pytest.mark.parametrize("argv", [["--text", "a=b --json"], ["--text=a=b --json"]])
def test_the_value_of_a_flag_is_taken_as_it_stands(argv: list[str]) -> None:
    assert parse(argv) == Arguments(options={"text": "a=b --json"})


def test_yes_and_help_are_switches() -> None:
    arguments = parse(["--yes", "-h"])
    assert arguments.yes
    assert arguments.help
    assert not parse([]).help


def test_after_two_dashes_nothing_is_a_flag() -> None:
    assert parse(["--", "-x", "--json", "a=1"]) == Arguments(words=["-x", "--json"], overrides=["a=1"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jsn"], "unknown flag '--jsn'. Did you mean '--json'?"),
        (["--text"], "--text: needs a value; write --text VALUE."),
        (["--json=1"], "--json: takes no value, got '1'; write --json alone."),
    ],
)
def test_a_wrong_flag_says_what_to_write(argv: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(argv)
    assert str(caught.value) == message


def test_emit_prints_json_with_its_own_letters(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"name": "中文"}, True, "unused")
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": "中文"}
    assert "中文" in out
    emit({}, False, "text")
    assert capsys.readouterr().out == "text\n"
