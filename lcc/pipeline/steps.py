"""Steps of one recipe, each with a key that hashes what made its result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lcc.config.cards import FORMAT, Mistake, Mistakes, digest, identify, name_of
from lcc.core.errors import RecipeError, did_you_mean
from lcc.pipeline.recipe import Recipe
from lcc.pipeline.stage import Stage

STEP_NAME = re.compile(r"\w[\w-]*")  # it becomes part of a folder's name and of step addresses


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
            "stage": identify(self.stage),
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
        match = next((s for s in self.steps if s.name == name), None)
        if match is None:
            known = [s.name for s in self.steps]
            raise RecipeError(f"no step is named {name!r}{did_you_mean(name, known)}")
        return match

    def up_to(self, verb: str) -> Pipeline:
        """The steps that `lcc VERB` runs: up to and including the last one of that verb."""
        last = max((i for i, s in enumerate(self.steps) if _belongs(self, s, verb)), default=None)
        if last is None:
            raise RecipeError(
                f"this recipe has no {verb} step; its stages are {', '.join(self.recipe.stages)}."
            )
        return Pipeline(self.recipe, self.steps[: last + 1])


def trained_step(name: str) -> str:
    """The step that a person wrote, of the one that planning put behind it for its adapter."""
    return name.removesuffix(".merged").removesuffix(".attached")


def judgements(steps: list[Step], source: Step) -> dict[str, Step]:
    """Of the evaluations so far that of `source` and the first of what it was made from.

    They are inputs of an export, whose model card has their scores.
    """
    made_from = [source]
    while "model" in made_from[-1].inputs:
        made_from.append(made_from[-1].inputs["model"])
    keys = [step.key for step in made_from]
    judged = [s for s in steps if s.kind == "eval" and s.inputs["model"].key in keys]
    this = next((s for s in reversed(judged) if s.inputs["model"].key == source.key), None)
    if this is None:
        return {}
    stem = this.name.partition(".")[0]
    before = next(s for s in judged if s.name.partition(".")[0] == stem)
    return {"eval.this": this} if before is this else {"eval.before": before, "eval.this": this}


def form_of(stage: Any) -> str:
    """The form of checkpoint that a stage hands on."""
    produces = getattr(stage, "produces", None)
    if produces is None:
        produces = getattr(getattr(stage, "method", None), "produces", "dense")
    return str(produces)


def require_fit(name: str, stage: Any, source: Step, where: str) -> None:
    """Raise Mistakes where step `name` cannot work on the model that `source` hands on."""
    form = form_of(source.stage)
    if form == "adapted" and form not in stage.accepts:
        raise Mistakes(
            [
                Mistake(
                    where,
                    f"the adapter of {trained_step(source.name)!r} stays beside "
                    f"its weights, so nothing can change them after it; place "
                    f"{name!r} before it, or train dense weights with a method "
                    "that merges, such as lora.",
                )
            ]
        )
    if form not in stage.accepts:
        raise Mistakes(
            [
                Mistake(
                    where,
                    f"takes a {' or '.join(stage.accepts)} model, but "
                    f"{source.name!r} before it makes a {form} one; place "
                    f"{name!r} before it.",
                )
            ]
        )
    method = getattr(stage, "method", None)
    if method is not None and form == "packed" and not method.over_packed:
        raise Mistakes(
            [
                Mistake(
                    f"{where}.method",
                    f"{name_of(method)} needs the weights "
                    f"that {source.name!r} has packed; use lora, whose adapter stays "
                    "beside them, or train before packing.",
                )
            ]
        )


def _belongs(pipeline: Pipeline, step: Step, verb: str) -> bool:
    planned = pipeline.recipe.plan
    origin = trained_step(step.name)
    if verb == "compress":
        return origin in planned
    if verb == "finetune":
        kind = step.kind if step.kind not in ("merge", "attach") else pipeline.step(origin).kind
        return kind == "finetune" and origin not in planned
    return step.kind == verb


def ordered(nodes: dict[str, Any], section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries in the order written, except those placed by `before:` or `after:`."""
    mistakes = [
        Mistake(f"{section}.{n}", f"expected a mapping of options, got {v!r}.")
        for n, v in nodes.items()
        if v is not None and not isinstance(v, dict)
    ]
    if mistakes:
        raise Mistakes(mistakes)
    mistakes = [
        Mistake(f"{section}.{n}", f"{n!r} is no step's name; letters, digits, - and _ are allowed.")
        for n in nodes
        if not STEP_NAME.fullmatch(n)
    ]
    mistakes += [
        Mistake(f"{section}.{n}.after", "give before or after, not both.")
        for n, v in nodes.items()
        if v and {"before", "after"} <= v.keys()
    ]
    if mistakes:
        raise Mistakes(mistakes)
    plain = {name: node or {} for name, node in nodes.items()}
    order = [name for name, node in plain.items() if not ("before" in node or "after" in node)]
    for name, node in plain.items():
        if name in order:
            continue
        side = "before" if "before" in node else "after"
        anchor = node[side]
        if anchor not in order:
            raise Mistakes(
                [
                    Mistake(
                        f"{section}.{name}.{side}",
                        f"no step is named {anchor!r}{did_you_mean(str(anchor), order)}",
                    )
                ]
            )
        order.insert(order.index(anchor) + (side == "after"), name)
    return ((name, plain[name]) for name in order)
