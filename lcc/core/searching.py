"""What a sampler is asked and answers: ranges, objectives, and every trial so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from lcc.core.errors import RecipeError
from lcc.core.ranges import Interval, Range

Direction = Literal["maximize", "minimize"]
TrialState = Literal["running", "finished", "failed", "pruned"]


@dataclass(frozen=True)
class Trial:
    """One point of a search: a value for every range, and what is known of it by now."""

    chosen: dict[str, str]  # head of a swept word → value as typed
    state: TrialState = "running"
    values: tuple[float, ...] = ()  # one for each objective, of a finished trial
    curve: dict[int, float] = field(default_factory=dict)  # training step → watched number
    memory: dict[str, Any] = field(default_factory=dict)  # the sampler's own, in JSON's terms


@dataclass(frozen=True)
class Search:
    """A search so far; what a sampler answers depends on this alone, so it survives any crash."""

    ranges: tuple[Range, ...]
    objectives: dict[str, Direction]
    trials: tuple[Trial, ...] = ()


@runtime_checkable
class SamplerCard(Protocol):
    """What `sampler=NAME` chooses."""

    adaptive: ClassVar[bool]  # whether an answer depends on results

    def check(self, search: Search) -> None:
        """Raise RecipeError for ranges or objectives that this sampler cannot serve."""
        ...

    def total(self, search: Search) -> int:
        """How many trials there will be."""
        ...

    def ask(self, search: Search) -> Trial | None:
        """The next trial, or None when there are enough."""
        ...


def require_ranges(search: Search, sampler: str) -> None:
    """Raise RecipeError where there is nothing to choose."""
    if not search.ranges:
        raise RecipeError(
            f"sampler={sampler} has nothing to choose; give a word a range, for example "
            "'stages.finetune.lr=tag(log,interval(1e-4,1e-2))' or plan=w8,nf4."
        )


def require_objectives(search: Search, sampler: str) -> None:
    """Raise RecipeError where nothing says what is better."""
    if not search.objectives:
        raise RecipeError(
            f"sampler={sampler} needs objectives to learn from; add for example "
            "'objectives={eval.quantize.bleu: maximize, bytes: minimize}'."
        )


def require_listed(search: Search, sampler: str) -> None:
    """Raise RecipeError for an interval, which holds more values than can be tried."""
    interval = next((r for r in search.ranges if isinstance(r, Interval)), None)
    if interval is not None:
        raise RecipeError(
            f"'{interval.head}': sampler={sampler} cannot try every number of an interval; list "
            "values (1e-4,1e-3), or choose sampler=random, tpe or nsga2."
        )


def typed(value: float, *, whole: bool) -> str:
    """A number as a word of the command line, short enough to read."""
    return str(round(value)) if whole else f"{value:.6g}"


def flat(objectives: Any, prefix: str = "") -> Any:
    """`{eval: {bleu: …}}`, as `objectives.eval.bleu=…` composes, with dotted names."""
    if not isinstance(objectives, dict):
        return objectives
    found: dict[str, Any] = {}
    for name, value in objectives.items():
        inner = flat(value, f"{prefix}{name}.")
        found.update(inner if isinstance(value, dict) else {f"{prefix}{name}": value})
    return found
