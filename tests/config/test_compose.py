"""A recipe is composed once per command, from the files that its words reach."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest

from lcc.cli import main
from lcc.config import compose
from lcc.core.errors import LccError
from lcc.pipeline.recipe import load


class Count:
    """Calls of a function, which still does its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.num, self.inner = 0, getattr(owner, name)
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *args: object, **options: object) -> object:
        self.num += 1
        return self.inner(*args, **options)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Count:
    monkeypatch.chdir(tmp_path)
    return Count(monkeypatch, hydra, "compose")


@pytest.mark.parametrize("scale, times", [([], 1), (["scale=smoke"], 2)])
@pytest.mark.parametrize(
    "words",
    [
        ["preview", "+recipe=tiny"],
        ["run", "+recipe=tiny", "--cfg"],
        ["run", "+recipe=tiny", "stages.finetune.lrr=1"],
        ["finetune", "+recipe=tiny", "plan.quantize.bit=4"],
        ["eval", "+recipe=mt_en_zh_small", "sed=1"],
        ["infer", "+recipe=tiny", "--text", "Hello."],
        ["data", "check", "+recipe=tiny"],
        ["sensitivity", "+recipe=tiny", "stages.finetune.lrr=1"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_composes_its_recipe_once(
    composed: Count, words: list[str], scale: list[str], times: int
) -> None:
    """A scale's stand-ins follow from what was composed, and are composed with the rest."""
    main([*words, *scale])
    assert composed.num == times


def test_only_the_files_that_the_words_reach_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    compose._read_version.cache_clear()
    compose._stored.cache_clear()
    read = Count(monkeypatch, compose, "read_yaml")
    load(["+recipe=tiny"])
    assert 5 < read.num < 20


def test_a_parent_recipe_s_choices_are_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    head = "# @package _global_\ndefaults:\n"
    (tmp_path / "recipes/child.yaml").write_text(f"{head}  - middle\n  - override /plan: w4\n")
    (tmp_path / "recipes/middle.yaml").write_text(f"{head}  - tiny\n  - override /method: ia3\n")
    recipe = load(["+recipe=child"]).recipe
    assert (recipe.method.word, recipe.model.name) == ("ia3", load(["+recipe=tiny"]).recipe.model.name)
    assert recipe.plan["quantize"]["bits"] == 4


def test_a_group_s_file_may_have_defaults_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/method").mkdir(parents=True)
    (tmp_path / "configs/method/mine.yaml").write_text("defaults:\n  - lora\nrank: 3\n")
    method = load(["+recipe=tiny", "method=mine"]).recipe.method
    assert (method.word, method.rank) == ("lora", 3)


def test_a_spoiled_file_that_nobody_chose_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/method").mkdir(parents=True)
    (tmp_path / "configs/method/mine.yaml").write_text("rank: [")
    assert load(["+recipe=tiny"]).recipe.method.word == "lora"
    with pytest.raises(LccError, match=r"mine\.yaml"):
        load(["+recipe=tiny", "method=mine"])
