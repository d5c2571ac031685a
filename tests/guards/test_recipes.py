"""Every shipped recipe runs, tiny, through the real runner, and says at its top what it costs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

import lcc
from lcc.config.yaml_files import choices
from lcc.core.errors import RecipeError
from lcc.core.machine import cores
from lcc.pipeline.planner import pipeline_of
from lcc.pipeline.steps import Pipeline, Step
from lcc.store.artifact import Artifact

ROOT = Path(lcc.__file__).parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
SMOKE = ("scale=smoke", "threads=1")
# Where there is one core, two processes are refused; the same recipe then runs in one.
if cores() == 1:
    SMOKE += ("distributed=single",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all recipes, so that their tiny base models and shared steps are made once."""
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_at_smoke_scale(name: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    run = lcc.run(f"+recipe={name}", *SMOKE)
    assert run.facts["status"] == "finished"
    planned = pipeline_of([f"+recipe={name}", *SMOKE], "run")
    assert [step.name for step in planned.steps] == list(run.artifacts)
    assert {f"eval.{c}" for c in _asked("eval", planned)} <= set(run.artifacts)
    for step, artifact in run.artifacts.items():
        if step.startswith("eval."):
            _require_scores(artifact)
    rows = run.artifacts["bench"].report["tables"]["speed"]
    assert {row["checkpoint"] for row in rows} == _asked("bench", planned)


def _asked(stage: str, planned: Pipeline) -> set[str]:
    """The checkpoints that a recipe has judged: all, where it names none."""
    return set(planned.recipe.stages[stage].get("checkpoints", planned.checkpoints))


def _require_scores(artifact: Artifact) -> None:
    measures: dict[str, Any] = artifact.report["measures"]
    assert measures["num_samples"]["value"] <= 8
    scores = [key.removesuffix("_low") for key in measures if key.endswith("_low")]
    assert scores and all(math.isfinite(measures[score]["value"]) for score in scores)


@pytest.mark.parametrize(
    "words, layers, family, data",
    [
        (["+recipe=mt_en_zh", "model=smollm2_135m"], 2, "llama", "tiny_en_zh"),
        (["+recipe=mt_en_zh_small", "model=tiny_t5"], 2, "llama", "tiny_en_zh"),
        (["+recipe=sentiment_en"], 2, "bert", "tiny_sentiment"),
        (["+recipe=sentiment_en", "model=gemma3_270m"], 2, "bert", "tiny_sentiment"),
        (["+recipe=lm_smollm2", "dataset=debian_en_zh"], 2, "llama", "tiny_text"),
        (["+recipe=mt_en_zh", "task.head=seq2seq"], 2, "t5", "tiny_en_zh"),
        (["+recipe=mt_en_zh_bert"], 2, "bert", "tiny_en_zh"),
        (["+recipe=bert_tiny"], 2, "bert", "tiny_en_zh"),
    ],
)
def test_smoke_scale_puts_tiny_stand_ins_whatever_the_words_say(
    words: list[str], layers: int, family: str, data: str
) -> None:
    pipeline = pipeline_of([*words, "scale=smoke"], "run")
    base, prepare = pipeline.step("base").stage, pipeline.step("data").stage
    scratch = base.spec.source.scratch  # type: ignore[attr-defined]
    assert scratch is not None, "smoke must download nothing"
    config = scratch.config
    assert config["model_type"] == family
    assert config.get("num_hidden_layers", config.get("num_layers")) == layers
    assert config.get("hidden_size", config.get("d_model")) == 64
    assert prepare.spec.name == data  # type: ignore[attr-defined]


def test_the_model_that_results_at_smoke_scale_is_the_tiny_one(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    words = ["+recipe=mt_en_zh", "model=smollm2_135m", *SMOKE]
    step: Step = pipeline_of(words, "run").step("base")
    tiny: Step = pipeline_of(["+recipe=tiny"], "run").step("base")
    assert step.key == tiny.key


@pytest.mark.parametrize("name", RECIPES)
def test_smoke_scale_caps_every_training_step(name: str) -> None:
    steps = pipeline_of([f"+recipe={name}", "scale=smoke"], "run").steps
    training: list[Any] = [s.stage for s in steps if getattr(s.stage, "trains", False)]
    assert training
    assert all(s.max_steps <= 4 and s.epochs <= 1 and s.samples <= 8 for s in training)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_at_its_top_what_it_costs(name: str) -> None:
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# yaml-language-server: \$schema=\S+\.json", lines[0])
    header = "\n".join(lines[: lines.index("# @package _global_")])
    assert all(line.startswith("#") for line in header.splitlines())
    assert re.search(rf"^#\s+lcc run \+recipe={name}\b", header, re.MULTILINE)
    assert "Cost" in header
    assert "Licence" in header


@pytest.mark.parametrize("recipe", ["mt_en_zh_small", "lm_smollm2", "sentiment_en"])
@pytest.mark.parametrize("plan", choices("plan"))
def test_every_recipe_takes_every_plan(recipe: str, plan: str) -> None:
    """Options for a step of the recipe's own plan are no part of another."""
    words = [f"+recipe={recipe}", f"plan={plan}"]
    if plan in ("vocab", "smallest") and recipe == "mt_en_zh_small":
        words.append("~stages.vocab")
    if plan == "factorize20":
        words.append("plan.factorize.allow_lcc_loader=true")
    assert pipeline_of(words, "run").steps


def test_options_typed_for_a_step_that_the_plan_lacks_are_a_mistake() -> None:
    with pytest.raises(RecipeError, match=r"plan.heal: no stage is named 'heal'"):
        pipeline_of(["+recipe=mt_en_zh_small", "plan=w4", "plan.heal.samples=3"], "run")


@pytest.mark.parametrize(
    ("words", "key"),
    [(["method=houlsby", "~plan", "~stages.compress"], "method"), (["plan=factorize20"], "plan.factorize")],
)
def test_what_only_lcc_loads_is_allowed_by_who_runs_it(words: list[str], key: str) -> None:
    words = ["+recipe=sentiment_en", *words]
    with pytest.raises(RecipeError, match=r"allow_lcc_loader: true"):
        pipeline_of(words, "run")
    assert pipeline_of([*words, f"{key}.allow_lcc_loader=true"], "run").steps
