"""Recipe as typed objects: every noun decoded, the scale applied, the device resolved."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lcc.config.cards import STAGES, Choice, Mistakes, card, card_schema, decode, names
from lcc.config.cards import find_card as card_named
from lcc.config.compose import Composed, compose
from lcc.config.search_space import Direction, flat
from lcc.core.errors import RecipeError
from lcc.core.machine import versions
from lcc.data.dataset import DatasetSpec
from lcc.distributed.dist import Distributed
from lcc.models.sources import ModelSpec
from lcc.tasks.task import Task

# Verbs that are their own only stage in a recipe without stages.
OWN_STAGE = ("pretrain", "finetune", "compress", "eval", "bench", "sensitivity")


@card
class Scale:
    """How large a recipe is run: tiny stand-ins by head and task, and upper bounds on options."""

    name: str = "full"
    models: dict[str, str] = field(default_factory=dict)  # task or head → model card
    datasets: dict[str, str] = field(default_factory=dict)  # task → dataset card
    faqs: dict[str, str] = field(default_factory=dict)  # task → file of its grounding
    caps: dict[str, int | float] = field(default_factory=dict)  # stage option → at most


@card
class Recipe:
    """One sentence: nouns, and verbs in order."""

    name: Annotated[str, Field(pattern=r"^\w[\w.\-]*$")] = "command"  # part of a folder's name
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: Annotated[int, Field(ge=1)] | None = None
    stats_budget: Annotated[int, Field(ge=0)] = 8 * 2**30  # bytes of calibration kept on disk
    model: ModelSpec | None = None
    dataset: DatasetSpec | None = None
    task: Task | None = None
    method: Annotated[Any, Choice("adapters")] = None
    clip: Annotated[Any, Choice("clipping")] = None
    distributed: Distributed = field(default_factory=Distributed)
    plan: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    tracker: Annotated[Any, Choice("trackers")] = None
    launcher: Annotated[Any, Choice("launchers")] = None
    sampler: Annotated[Any, Choice("samplers")] = None
    objectives: Annotated[dict[str, Direction], BeforeValidator(flat)] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)

    @property
    def device_type(self) -> str:
        """The device that `auto` means here, found without importing torch."""
        if self.device != "auto":
            return self.device
        if Path("/dev/nvidiactl").exists() and "+cpu" not in versions().get("torch", "+cpu"):
            return "cuda"
        is_apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        return "mps" if is_apple else "cpu"


@dataclass(frozen=True)
class LoadedRecipe:
    """The recipe of one command, composed once: its words, its types, where every key came from."""

    words: list[str]  # as typed
    verb: str
    recipe: Recipe
    composed: Composed  # the values after scaling, for messages


def load(words: list[str], verb: str = "run") -> LoadedRecipe:
    """Compose and decode the words of `lcc VERB`; raises RecipeError with every mistake and its place."""
    composed = scaled(words)
    return LoadedRecipe(words, verb, load_composed(composed, verb), composed)


def load_recipe(words: list[str], verb: str = "run") -> Recipe:
    """The recipe alone, for who plans no steps of it."""
    return load(words, verb).recipe


def load_composed(composed: Composed, verb: str = "run") -> Recipe:
    """Decode composed values; without stages of its own a verb is its own only stage."""
    values = {key: value for key, value in composed.values.items() if value is not None}
    if not values.get("stages") and verb in OWN_STAGE:
        values["stages"] = {verb: {}}
    if composed.recipe is not None:
        values.setdefault("name", composed.recipe)
    try:
        recipe = decode(Recipe, values)
    except Mistakes as mistakes:
        raise composed.explain(mistakes) from None
    return recipe


def scaled(overrides: list[str]) -> Composed:
    """Compose, with a scale once more with its stand-ins forced in, and cap the options.

    The stand-ins follow from the composed task, and must lie under what a recipe sets in a noun: only
    a second composition puts them there.
    """
    composed = compose(overrides)
    node = composed.values.get("scale")
    if not node:
        return composed
    scale = decode(Scale, node, "scale")
    words = [*overrides, *_stand_ins(scale, composed.values)]
    composed = compose(words) if len(words) > len(overrides) else composed
    for section in ("stages", "plan"):
        for name, options in (composed.values.get(section) or {}).items():
            composed.values[section][name] = _capped(name, options, scale.caps)
    return composed


def _stand_ins(scale: Scale, values: dict[str, Any]) -> list[str]:
    """Forced overrides: the tiny model for the task's head, the tiny data for the task."""
    task = values.get("task") or {}
    head, name = str(task.get("head", "causal")), str(task.get("name"))
    if "couple" in (values.get("stages") or {}):
        head = "embed"  # the task's head is what coupling makes of an encoder
    words = []
    stand_in = scale.models.get(name) or scale.models.get(head)
    if values.get("model") and stand_in:
        words.append(f"model={stand_in}")
    if values.get("dataset") and name in scale.datasets:
        words.append(f"dataset={scale.datasets[name]}")
    if task.get("grounding") and name in scale.faqs:
        words.append(f"++task.grounding.file={scale.faqs[name]}")
    return words


def _capped(name: str, options: Any, caps: dict[str, int | float]) -> Any:
    if options is not None and not isinstance(options, dict):
        return options
    node = dict(options or {})
    kind = node.get("kind", name)
    if kind not in names(STAGES):
        return options
    fields = card_named(STAGES, kind).__dataclass_fields__
    for key, cap in caps.items():
        if key not in fields:
            continue
        value = node.get(key, fields[key].default)
        if isinstance(value, int | float) and not isinstance(value, bool):
            node[key] = min(value, cap)
        elif key not in node or value is None:
            node[key] = cap  # anything else given is a mistake, which decoding will tell
    return node


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file: nouns, and stages and plan steps by kind."""
    schema = card_schema(Recipe)
    kinds = [card_schema(card_named(STAGES, kind)) for kind in names(STAGES)]
    placed = {
        "kind": {"enum": names(STAGES)},
        "before": {"type": "string"},
        "after": {"type": "string"},
        "checkpoints": {"type": "array"},
    }
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    options: dict[str, Any] = dict(placed)
    for kind in kinds:
        definitions.update(kind.get("$defs", {}))
        for key, value in kind.get("properties", {}).items():
            options.setdefault(key, {"anyOf": []}).setdefault("anyOf", []).append(value)
    node = {"type": ["object", "null"], "properties": options, "additionalProperties": False}
    for section in ("stages", "plan"):
        schema["properties"][section] = {"type": "object", "additionalProperties": node}
    schema["properties"]["defaults"] = {"type": "array"}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "lcc recipe"
    return schema


def require(value: Any, group: str) -> Any:
    """`value`, or the sentence that says which noun is missing."""
    if value is None:
        raise RecipeError(f"no {group} is chosen; add {group}=NAME.")
    return value
