"""The steps of one recipe, each with a key that says what made its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lcc.core.describe import FORMAT, describe, digest
from lcc.core.errors import RecipeError
from lcc.core.nearest import did_you_mean
from lcc.recipe import Recipe
from lcc.stage import Stage


@dataclass(frozen=True)
class Step:
    """One unit of work: a decoded stage, where its inputs come from, and the key of its result."""

    name: str
    kind: str
    stage: Stage
    inputs: dict[str, Step] = field(default_factory=dict)
    nouns: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None  # the name readers know the resulting model by

    @cached_property
    def ingredients(self) -> dict[str, Any]:
        """Everything that made the result, by name; what `lcc why` compares."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "stage": describe(self.stage),
            "inputs": {name: step.key for name, step in sorted(self.inputs.items())},
            **self.nouns,
        }

    @cached_property
    def key(self) -> str:
        return digest(self.ingredients)


@dataclass(frozen=True)
class Pipeline:
    """The steps of one recipe in order, and which of them hand on a model under which name."""

    recipe: Recipe
    steps: list[Step]

    @property
    def checkpoints(self) -> dict[str, Step]:
        return {step.checkpoint: step for step in self.steps if step.checkpoint}

    def step(self, name: str) -> Step:
        found = next((s for s in self.steps if s.name == name), None)
        if found is None:
            known = [s.name for s in self.steps]
            raise RecipeError(f"no step is named {name!r}{did_you_mean(name, known)}")
        return found

    def up_to(self, verb: str) -> Pipeline:
        """The steps that `lcc VERB` runs: up to and including the last one of that verb."""
        last = max((i for i, s in enumerate(self.steps) if _belongs(self, s, verb)), default=None)
        if last is None:
            raise RecipeError(f"this recipe has no {verb} step; its stages are "
                              f"{', '.join(self.recipe.stages)}.")  # fmt: skip
        return Pipeline(self.recipe, self.steps[: last + 1])


def _belongs(pipeline: Pipeline, step: Step, verb: str) -> bool:
    planned = pipeline.recipe.plan
    origin = step.name.removesuffix(".merged")
    if verb == "compress":
        return origin in planned
    if verb == "finetune":
        kind = step.kind if step.kind != "merge" else pipeline.step(origin).kind
        return kind == "finetune" and origin not in planned
    return step.kind == verb
