"""What the README tells people to type is true: verbs, flags, words and make targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import lcc
from lcc.cli import main, verbs
from lcc.cli.arguments import Arguments, parse
from lcc.config.search_space import chosen_words
from lcc.config.yaml_files import GROUPS, choices
from lcc.pipeline.planner import pipeline_of
from lcc.sweeps.spec import parse_sweep

ROOT = Path(lcc.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "docs/sweeps.md",
    *sorted((ROOT / "docs").glob("tasks/*.md")),
    *sorted((ROOT / "docs").glob("scenarios/*.md")),
]
SHOWN = README + "".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"^```sh\n(.*?)^```", SHOWN, re.MULTILINE | re.DOTALL)
LINES = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
INLINE = re.findall(r"`((?:lcc|make) [^`]+)`", SHOWN)
# A word with an ellipsis or a name in capitals stands for what the reader puts there.
TYPED = [
    words
    for line in [*LINES, *INLINE]
    if (words := shlex.split(line, comments=True))
    and not re.search(r"…|=NAME\b|\bpath/to\b|=mine\b", " ".join(words))
]
COMMANDS = [words[1:] for words in TYPED if words[0] == "lcc"]
GOALS = [word for words in TYPED if words[0] == "make" for word in words[1:] if "=" not in word]
RUN_LIKE = ("run", "pretrain", "finetune", "compress", "eval", "bench", "preview", "why")
OFFLINE = [["--help"], ["recipes", "ls"], ["schema"], ["doctor"], ["preview", "+recipe=mt_en_zh_small"]]


def test_the_readme_is_read_as_people_read_it() -> None:
    assert len(COMMANDS) >= 10
    assert GOALS.count("demo") and GOALS.count("test")
    assert {words[0] for words in TYPED} <= {"lcc", "make"}


@pytest.mark.parametrize("goal", sorted(set(GOALS)))
def test_a_make_goal_exists(goal: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(goal)}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_one_that_lcc_takes(words: list[str]) -> None:
    if words[0].startswith("-"):
        assert main(words) == 0
        return
    assert words[0] in verbs()
    arguments = parse(words[1:])
    if words[0] in RUN_LIKE and arguments.overrides:
        _require_composes(words[0], arguments)


def _require_composes(verb: str, arguments: Arguments) -> None:
    wanted = parse_sweep(arguments.overrides)
    assert arguments.multirun == (wanted.sampler.total(wanted.search) > 1)
    trial = wanted.sampler.ask(wanted.search)
    pipeline = pipeline_of(chosen_words(wanted.words, trial.chosen), "run" if verb == "why" else verb)
    assert pipeline.steps
    for step in arguments.words:
        pipeline.step(step)


@pytest.mark.parametrize("words", OFFLINE, ids=" ".join)
def test_a_command_that_needs_nothing_runs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_says_how_it_is_used(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"lcc {verb}" in capsys.readouterr().out


def test_every_word_of_configuration_named_in_passing_exists() -> None:
    """`clip.max_norm=0.5` and the like: words that change a recipe, tried on the small one."""
    words = [
        word
        for word in re.findall(r"`([~\w.]+=?[\w.]*)`", README)
        if re.match(r"~|(clip|distributed|plan|scale)[.=]", word)
    ]
    assert len(words) >= 4
    for word in words:
        assert pipeline_of(["+recipe=mt_en_zh_small", word], "run").steps, word


def test_the_recipes_named_are_the_recipes_there() -> None:
    sentence = re.search(r"^The recipes here: (.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    assert sentence is not None
    named = set(re.findall(r"`([a-z_0-9]+)`", sentence[1]))
    assert named == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_the_recipe_shown_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.search(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert shown is not None
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "shown.yaml").write_text(shown[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = [step.name for step in pipeline_of(["+recipe=shown"], "run").steps]
    assert names[:3] == ["base", "data", "vocab"] and names[-1] == "bench"


def test_the_files_the_readme_points_to_exist() -> None:
    paths = [p for p in re.findall(r"\]\(([^)#]+)\)|`((?:lcc|configs)/[\w/.]+\.\w+)`", README)]
    named = [a or b for a, b in paths if not (a or b).startswith("http")]
    missing = [p for p in named if not (ROOT / p).exists() and "mine" not in p]
    assert named and not missing, missing
    assert all(choices(group) for group in GROUPS)
