"""Objectives are read from what a run wrote, under the names that reports use."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_run import write_sample_run

from lcc.core.errors import RecipeError
from lcc.pipeline.planner import pipeline_of
from lcc.store.runs import read_run
from lcc.sweeps.spec import check_steps, measured, values_of


def test_a_step_s_figure_and_the_last_model_s_are_both_found(tmp_path: Path) -> None:
    run = read_run(write_sample_run(tmp_path))
    last = list(run.checkpoints)[-1]
    found = measured(run)
    assert found["bleu"] == found[f"eval.{last}.bleu"] == 35.1
    assert values_of(run, ["bleu", "bytes"]) == {"bleu": 35.1, "bytes": found[f"{last}.bytes"]}


def test_an_objective_that_no_run_measures_names_the_nearest(tmp_path: Path) -> None:
    run = read_run(write_sample_run(tmp_path))
    with pytest.raises(RecipeError) as caught:
        values_of(run, ["bluu"])
    assert str(caught.value) == (f"objectives: run {run.name} measured no 'bluu'. Did you mean 'bleu'?")


def test_an_objective_of_a_step_that_nobody_planned_is_told_before_anything_runs() -> None:
    pipeline = pipeline_of(["+recipe=tiny"], "run")
    check_steps(pipeline, ["eval.quantize.bleu", "bytes"])
    with pytest.raises(RecipeError) as caught:
        check_steps(pipeline, ["eval.quantise.bleu"])
    assert str(caught.value) == (
        "objectives: 'eval.quantise.bleu' is measured by a step 'eval.quantise', which this recipe "
        "does not have. Did you mean 'eval.quantize'?"
    )
