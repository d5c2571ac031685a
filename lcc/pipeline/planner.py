"""Planner: a recipe becomes a pipeline, ordered, checked and keyed, in a second and without torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lcc.config.cards import STAGES, Mistake, Mistakes, decode, describe, find_card, names
from lcc.core.disk import file_digest
from lcc.core.errors import RecipeError, did_you_mean
from lcc.core.machine import machine_key, versions
from lcc.data import dataset as datasets
from lcc.models import sources
from lcc.pipeline.recipe import LoadedRecipe, Recipe, load
from lcc.pipeline.stage import Stage
from lcc.pipeline.steps import Pipeline, Step, form_of, judgements, ordered, require_fit

IMPLICIT = ("base", "prepare", "merge", "attach", "calibrate")  # steps the pipeline adds by itself
STEP_KEYS = ("kind", "before", "after", "checkpoints")  # placed by the pipeline, not the stage
LATER_FIELDS = ("baseline", "passage", "turns", "system", "grounding")  # of a task
NOUNS = ("method", "clip", "distributed")  # every training step takes these unless its node says
# Which versions enter a key: those whose arithmetic or file format a step's numbers come from.
LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "torch-pruning", "bitsandbytes",
             "compressed-tensors", "sacrebleu")  # fmt: skip


def plan_steps(recipe: Recipe) -> Pipeline:
    """Order, decode, check and key the steps of `recipe`; raises Mistakes or RecipeError."""
    return _Planner(recipe).build()


def one_more_step(
    recipe: Recipe, steps: list[Step], kind: str, stage: Stage, inputs: dict[str, Step]
) -> Step:
    """A step named after its kind that follows `steps`, with the nouns of `recipe`."""
    return _Planner(recipe, steps=list(steps))._add(kind, kind, stage, inputs)


@dataclass
class _Planner:
    recipe: Recipe
    steps: list[Step] = field(default_factory=list)
    current: Step | None = None
    plan_input: Step | None = None
    trained: bool = False

    def build(self) -> Pipeline:
        recipe = self.recipe
        if recipe.model is not None:
            base = self._add("base", "base", find_card(STAGES, "base")(spec=recipe.model), {})
            self.current = base
        if recipe.dataset is not None:
            self._add("data", "prepare", find_card(STAGES, "prepare")(spec=recipe.dataset), {})
        for name, node in ordered(recipe.stages, "stages"):
            if name == "compress":
                self._compress(node)
            else:
                self._stage(name, node, "stages")
        if not self.steps:
            raise RecipeError("nothing to do: give a recipe (+recipe=NAME) or a model (model=NAME).")
        return Pipeline(recipe, self.steps)

    def _compress(self, node: dict[str, Any]) -> None:
        if node:
            key = f"stages.compress.{next(iter(node))}"
            raise Mistakes([Mistake(key, "the plan's steps are set under plan., not here.")])
        if not self.recipe.plan:
            raise RecipeError("stages.compress: no plan is chosen; add plan=NAME.")
        self.plan_input = self.current
        for name, step_node in ordered(self.recipe.plan, "plan"):
            self._stage(name, step_node, "plan")

    def _stage(self, name: str, node: dict[str, Any], section: str) -> None:
        where = f"{section}.{name}"
        kind = node.get("kind", name)
        options = {k: v for k, v in node.items() if k not in STEP_KEYS}
        cls = _stage_type(kind, where, spelled="kind" in node)
        if any(step.name == name for step in self.steps):
            raise Mistakes(
                [Mistake(where, f"a step named {name!r} stands already; rename one and give it `kind:`.")]
            )
        options = self._with_nouns(cls, options)
        if kind == "eval":
            self._evaluations(name, node, options, where)
        elif kind == "bench":
            self._bench(name, node, decode(cls, options, where), where)
        else:
            self._model_step(name, kind, decode(cls, options, where), where)

    def _with_nouns(self, cls: type[Any], options: dict[str, Any]) -> dict[str, Any]:
        fields = cls.__dataclass_fields__
        chosen = {n: getattr(self.recipe, n) for n in NOUNS if n in fields}
        return {**{n: _as_node(value) for n, value in chosen.items() if value}, **options}

    def _model_step(self, name: str, kind: str, stage: Stage, where: str) -> None:
        source = self._require_model(where)
        require_fit(name, stage, source, where)
        inputs = {"model": source}
        if getattr(stage, "needs", None):
            stage = self._with_mode(stage)
            if stage.calibration.mode == "dense":  # type: ignore[attr-defined]
                inputs["stats"] = self._statistics(name, stage, source)
        if kind == "export":
            inputs |= judgements(self.steps, source)
        if getattr(stage, "teacher", None):
            inputs["teacher"] = self._teacher(str(stage.teacher), source, where)  # type: ignore[attr-defined]
        adapter = form_of(stage) == "adapter"
        changes = stage.changes_model
        step = self._add(name, kind, stage, inputs, checkpoint=None if adapter else name)
        if adapter:
            merges = form_of(source.stage) == "dense" and stage.method.merges  # type: ignore[attr-defined]
            kind, suffix = ("merge", "merged") if merges else ("attach", "attached")
            step = self._add(
                f"{name}.{suffix}",
                kind,
                find_card(STAGES, kind)(),
                {"model": source, "adapter": step},
                checkpoint=name,
            )
        if changes:
            self.current = step
        self.trained = self.trained or getattr(stage, "trains", False)

    def _with_mode(self, stage: Any) -> Any:
        """The stage with `auto` decided: dense while the statistics are within the budget."""
        if stage.calibration.mode != "auto":
            return stage
        fits = sources.stats_bytes(self.recipe.model) <= self.recipe.stats_budget
        mode = "dense" if fits or stage.needs == "diagonal" else "sequential"
        return replace(stage, calibration=replace(stage.calibration, mode=mode))

    def _statistics(self, name: str, stage: Any, source: Step) -> Step:
        """The step that looks at `source` as `stage` asks; one that stands already serves again."""
        options = {"calibration": _as_node(stage.calibration), "gram": stage.needs == "gram"}
        calibrate = find_card(STAGES, "calibrate")
        options = self._with_nouns(calibrate, options)
        num_before = len(self.steps)
        made = self._add(
            f"{name}.stats", "calibrate", decode(calibrate, options, f"plan.{name}"), {"model": source}
        )
        same = next((s for s in self.steps[:num_before] if s.key == made.key), None)
        if same is not None:
            self.steps.pop()
        return same or made

    def _evaluations(self, name: str, node: dict[str, Any], options: dict[str, Any], where: str) -> None:
        self._require_model(where)
        chosen = self._choices(node, where)
        plan = set(self.recipe.plan)
        evaluations: dict[str, Step] = {}
        trained = False
        task = self.recipe.task
        for checkpoint, source in self._checkpoints().items():
            trained = trained or _was_trained(source)
            if checkpoint not in chosen:
                continue
            shots = 0 if trained or task is None else task.shots
            stage = decode(find_card(STAGES, "eval"), {"shots": shots, **options}, where)
            inputs = {"model": source}
            before = [c for c in evaluations if c not in plan]
            if before:
                inputs["base"] = evaluations[before[0]]
            if before and checkpoint in plan:
                # What compression lost is judged against the model that the plan was given.
                inputs["reference"] = evaluations[before[-1]]
            evaluations[checkpoint] = self._add(f"{name}.{checkpoint}", "eval", stage, inputs)

    def _bench(self, name: str, node: dict[str, Any], stage: Stage, where: str) -> None:
        self._require_model(where)
        chosen = self._choices(node, where)
        inputs = {f"checkpoint.{c}": s for c, s in self._checkpoints().items() if c in chosen}
        self._add(name, "bench", stage, inputs)

    def _checkpoints(self) -> dict[str, Step]:
        return {step.checkpoint: step for step in self.steps if step.checkpoint}

    def _choices(self, node: dict[str, Any], where: str) -> list[str]:
        known = list(self._checkpoints())
        chosen = node.get("checkpoints", known)
        if not isinstance(chosen, list):
            raise Mistakes([Mistake(f"{where}.checkpoints", f"expected a list, got {chosen!r}.")])
        for name in chosen:
            if name not in known:
                hint = did_you_mean(str(name), known)
                raise Mistakes([Mistake(f"{where}.checkpoints", f"no checkpoint {name!r}{hint}")])
        return chosen

    def _add(
        self, name: str, kind: str, stage: Stage, inputs: dict[str, Step], *, checkpoint: str | None = None
    ) -> Step:
        if kind == "base":
            checkpoint = name
        elif checkpoint is not None and not stage.changes_model:
            checkpoint = None
        wired = dict(inputs)
        if "data" in stage.reads:
            prepared = next((s for s in self.steps if s.kind == "prepare"), None)
            if prepared is None:
                raise RecipeError(f"step {name!r} needs data; choose some with dataset=NAME.")
            wired["data"] = prepared
        step = Step(name, kind, stage, wired, self._nouns(name, kind, stage), checkpoint)
        self.steps.append(step)
        return step

    def _nouns(self, name: str, kind: str, stage: Stage) -> dict[str, Any]:
        recipe, nouns = self.recipe, dict[str, Any]()
        if kind == "base":
            nouns["source"] = sources.fingerprint(stage.spec)  # type: ignore[attr-defined]
        if kind == "prepare":
            return {"source": datasets.fingerprint(stage.spec)}  # type: ignore[attr-defined]
        if hasattr(stage, "files"):
            nouns["files"] = {name: file_digest(path) for name, path in stage.files().items()}
        if "task" in stage.reads:
            if recipe.task is None:
                raise RecipeError(f"step {name!r} needs a task; choose one with task=NAME.")
            nouns["task"] = _task_of(recipe, kind)
            if recipe.task.grounding is not None:
                nouns["grounding"] = recipe.task.grounding.reader.fingerprint()
        if "seed" in stage.reads:
            nouns["seed"] = recipe.seed
        if "device" in stage.reads:
            nouns["device"] = recipe.device_type
        if "dtype" in stage.reads:
            nouns["dtype"] = recipe.dtype
        if kind == "bench":
            nouns["machine"] = machine_key()
        return {**nouns, "versions": {k: v for k, v in versions().items() if k in LIBRARIES}}

    def _require_model(self, where: str) -> Step:
        if self.current is None:
            raise RecipeError(f"{where}: no model is chosen; add model=NAME or model=FOLDER.")
        return self.current

    def _teacher(self, teacher: str, source: Step, where: str) -> Step:
        known = self._checkpoints()
        if teacher == "plan_input":
            teacher_step = self.plan_input
            if teacher_step is None:
                raise Mistakes(
                    [
                        Mistake(
                            f"{where}.teacher",
                            f"plan_input is known inside a plan only; name a step: {', '.join(known)}.",
                        )
                    ]
                )
        elif "/" in teacher:
            node = {"name": teacher.rstrip("/").rpartition("/")[2], "source": {"path": teacher}}
            spec = decode(sources.ModelSpec, node, f"{where}.teacher")
            return self._add("teacher", "base", find_card(STAGES, "base")(spec=spec), {})
        elif teacher in known:
            teacher_step = known[teacher]
        else:
            hint = did_you_mean(teacher, [*known, "plan_input"])
            raise Mistakes([Mistake(f"{where}.teacher", f"no model is named {teacher!r}{hint}")])
        if teacher_step.key == source.key:
            raise Mistakes(
                [
                    Mistake(
                        f"{where}.teacher",
                        f"{teacher!r} is the very model this step trains; choose an earlier one.",
                    )
                ]
            )
        return teacher_step


def _as_node(choice: Any) -> dict[str, Any]:
    """A decoded noun as the YAML it came from, so that a stage can decode it as its own field."""
    return {key: value for key, value in describe(choice).items() if key != "revision"}


def _task_of(recipe: Recipe, kind: str) -> Any:
    """What a step sees of the task: how it is scored matters to evaluation only."""
    described = describe(recipe.task)
    unseen = {"eval": (), "bench": ("baseline",), "vocab": ("metrics", "decode", "baseline")}
    ignored = (*unseen.get(kind, ("metrics", "decode", "shots", "baseline")), "sampling")
    # Left out where nothing is said: keys of tasks without them are what they were before.
    empty = [key for key in LATER_FIELDS if not described.get(key)]
    return {k: v for k, v in described.items() if k not in ignored and k not in empty}


def _was_trained(step: Step) -> bool:
    """Whether any step that led to this model trained it."""
    if getattr(step.stage, "trains", False):
        return True
    return any(_was_trained(s) for n, s in step.inputs.items() if n in ("model", "adapter"))


def _stage_type(kind: Any, where: str, *, spelled: bool) -> type[Any]:
    offered = [name for name in names(STAGES) if name not in IMPLICIT]
    if kind not in offered:
        key = f"{where}.kind" if spelled else where
        raise Mistakes([Mistake(key, f"no stage is named {kind!r}{did_you_mean(str(kind), offered)}")])
    return find_card(STAGES, str(kind))


# What the words of a command, or of one point of a sweep, mean as steps.


def plan(loaded: LoadedRecipe) -> Pipeline:
    """The steps that the command means; raises RecipeError with every mistake's place."""
    pipeline = _planned(loaded)
    return pipeline if loaded.verb in ("run", "preview") else pipeline.up_to(loaded.verb)


def pipeline_of(words: list[str], verb: str) -> Pipeline:
    """The steps that `lcc VERB WORDS` means, composed for this call."""
    return plan(load(words, verb))


def point_pipeline(words: list[str], verb: str) -> Pipeline:
    """The steps of one point: points of `compress` are judged by themselves and raced together."""
    if verb != "compress":
        pipeline = pipeline_of(words, verb)
    else:
        pipeline = _untimed(_planned(load(words, verb), judged=True))
    if (nodes := pipeline.recipe.distributed.nodes) > 1:
        raise RecipeError(
            f"distributed.nodes: a point of a sweep runs on one node, got {nodes}; "
            "set it to 1 and let the launcher spread the points."
        )
    return pipeline


def _planned(loaded: LoadedRecipe, *, judged: bool = False) -> Pipeline:
    recipe = _judged(loaded.recipe) if judged else loaded.recipe
    if loaded.verb == "sensitivity":
        recipe = _probed(recipe)
    try:
        return plan_steps(recipe)
    except Mistakes as mistakes:
        raise loaded.composed.explain(mistakes) from None


def _judged(recipe: Recipe) -> Recipe:
    """The recipe with an evaluation of what its plan is given and makes, where it has none."""
    has_eval = any((node or {}).get("kind", n) == "eval" for n, node in recipe.stages.items())
    if has_eval or list(recipe.stages) != ["compress"] or not recipe.plan:
        return recipe
    if recipe.task is None or recipe.dataset is None:
        return recipe
    wanted = {"checkpoints": ["base", list(recipe.plan)[-1]]}
    return replace(recipe, stages={**recipe.stages, "eval": wanted})


def _probed(recipe: Recipe) -> Recipe:
    """The recipe up to what its plan is given, and the sensitivity of that."""
    if any((node or {}).get("kind", n) == "sensitivity" for n, node in recipe.stages.items()):
        return recipe
    names = list(recipe.stages)
    before = names[: names.index("compress")] if "compress" in names else names
    kinds = {n: (recipe.stages[n] or {}).get("kind", n) for n in before}
    kept = {n: recipe.stages[n] for n in before if kinds[n] not in ("eval", "bench")}
    return replace(recipe, stages={**kept, "sensitivity": {}})


def _untimed(pipeline: Pipeline) -> Pipeline:
    """Without its bench: the points race together at the end, under the same conditions."""
    return Pipeline(pipeline.recipe, [s for s in pipeline.steps if s.kind != "bench"])
