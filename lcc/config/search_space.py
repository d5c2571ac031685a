"""Search space of a sweep: ranges, objectives, and every trial so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from lcc.config.compose import parsed, unreadable
from lcc.core.errors import RecipeError

# Swept words as ranges: lists, steps and intervals, written in Hydra's override grammar.


@dataclass(frozen=True)
class Listed:
    """`a,b`, `choice(a,b)` or `range(1,9,2)`: values as they are typed; a range also has a step."""

    head: str  # the word before its `=`
    values: tuple[str, ...]
    step: float | None = None


@dataclass(frozen=True)
class Interval:
    """`interval(0,1)`, `int(interval(1,9))` or `tag(log,interval(1e-5,1e-2))`, bounds included."""

    head: str
    low: float
    high: float
    whole: bool = False
    log: bool = False


Range = Listed | Interval


def ranges(words: Sequence[str]) -> list[Range]:
    """The words that stand for several values; raises RecipeError for what is no range."""
    parsed = [_range(word) for word in words]
    heads = [r.head.lstrip("+") for r in parsed if r is not None]
    twice = next((head for head in heads if heads.count(head) > 1), None)
    if twice is not None:
        raise RecipeError(f"'{twice}' is swept twice; write all its values in one word.")
    return [r for r in parsed if r is not None]


def chosen_words(words: Sequence[str], chosen: dict[str, str]) -> list[str]:
    """`words` with every swept one replaced by the value chosen for its head."""
    heads = [word.partition("=")[0] for word in words]
    swept = {r.head for r in ranges(words)}
    return [
        f"{head}={chosen[head]}" if head in swept else word for head, word in zip(heads, words, strict=True)
    ]


def _range(word: str) -> Range | None:
    override = parsed(word)
    if not override.is_sweep_override():
        return None
    head, value = word.partition("=")[0], override.value()
    if getattr(value, "shuffle", False):
        raise RecipeError(
            f"'{word}': shuffle would give every start another order; take sampler=random in its place."
        )
    if override.is_interval_sweep():
        return _interval(word, head, value)
    from hydra.errors import HydraException

    try:
        values = tuple(override.sweep_string_iterator())
    except HydraException:
        raise unreadable(word) from None
    if not values:
        raise RecipeError(f"'{word}' stands for no value at all; give at least one.")
    if len(values) == 1:
        return Listed(head, values)
    is_range = override.is_range_sweep()
    return Listed(head, values, step=abs(float(value.step)) if is_range else None)  # type: ignore[union-attr]


def _interval(word: str, head: str, value: Any) -> Interval:
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    low, high, log = float(value.start), float(value.end), "log" in value.tags
    unknown = sorted(value.tags - {"log"})
    if unknown:
        raise RecipeError(f"'{word}': the tag {unknown[0]!r} means nothing here; only log does.")
    if not low < high:
        raise RecipeError(f"'{word}': an interval goes from a lower to a higher number.")
    if log and low <= 0:
        raise RecipeError(f"'{word}': a logarithmic interval starts above zero.")
    return Interval(head, low, high, whole=whole, log=log)


Direction = Literal["maximize", "minimize"]
TrialState = Literal["running", "finished", "failed", "pruned"]


@dataclass(frozen=True)
class SearchTrial:
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
    trials: tuple[SearchTrial, ...] = ()


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

    def ask(self, search: Search) -> SearchTrial | None:
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
    dotted: dict[str, Any] = {}
    for name, value in objectives.items():
        inner = flat(value, f"{prefix}{name}.")
        dotted.update(inner if isinstance(value, dict) else {f"{prefix}{name}": value})
    return dotted
