"""Optuna behind the sampler's contract: for every question a study is built from the trials."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from lcc.config.cards import digest
from lcc.config.search_space import Interval, Range, Search, SearchTrial, typed
from lcc.core.errors import ResourceError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial


def optuna_for(sampler: str) -> Any:
    """The package, quiet; raises ResourceError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ResourceError(
            f"sampler={sampler} needs Optuna; pip install 'lcc[optuna]', or choose sampler=random."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def seed_of(search: Search, seed: int) -> int:
    """A seed for this very question, so that a driver that died asks the same again."""
    return int(digest([seed, len(search.trials)])[:8], 16)


def next_trial(search: Search, sampler: BaseSampler, name: str) -> SearchTrial:
    """What `sampler` proposes after the trials of `search`."""
    study = study_of(search, name, sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features that Optuna calls experimental
        asked = study.ask(distributions(search))
    frozen = study.trials[asked.number]
    chosen = {r.head: _word(r, frozen.params[r.head]) for r in search.ranges}
    return SearchTrial(chosen, memory=dict(frozen.system_attrs))


def study_of(search: Search, name: str, *, sampler: BaseSampler | None = None) -> Study:
    """The trials of `search` as a study in memory."""
    optuna = optuna_for(name)
    directions = list(search.objectives.values())
    study: Study = optuna.create_study(directions=directions, sampler=sampler)
    study.add_trials([frozen_trial(search, trial, name) for trial in search.trials])
    return study


def frozen_trial(search: Search, trial: SearchTrial, name: str) -> FrozenTrial:
    """One of our trials as one of Optuna's."""
    optuna = optuna_for(name)
    states = {"running": "RUNNING", "finished": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}
    frozen: FrozenTrial = optuna.trial.create_trial(
        state=optuna.trial.TrialState[states[trial.state]],
        params={r.head: _value(r, trial.chosen[r.head]) for r in search.ranges},
        distributions=distributions(search),
        values=list(trial.values) if trial.state == "finished" else None,
        intermediate_values=trial.curve,
        system_attrs=trial.memory,
    )
    return frozen


def distributions(search: Search) -> dict[str, BaseDistribution]:
    """Every range as Optuna's distribution of the same numbers."""
    return {r.head: _distribution(r) for r in search.ranges}


def _distribution(range_: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(range_, Interval):
        if range_.whole:
            return IntDistribution(round(range_.low), round(range_.high), log=range_.log)
        return FloatDistribution(range_.low, range_.high, log=range_.log)
    if range_.step is None:
        return CategoricalDistribution(range_.values)
    numbers = sorted(float(value) for value in range_.values)
    if _is_whole(range_):
        return IntDistribution(int(numbers[0]), int(numbers[-1]), step=round(range_.step))
    return FloatDistribution(numbers[0], numbers[-1], step=range_.step)


def _is_whole(range_: Range) -> bool:
    if isinstance(range_, Interval):
        return range_.whole
    return all(value.lstrip("-").isdigit() for value in range_.values)


def _word(range_: Range, value: Any) -> str:
    """Optuna's value as it is typed; a listed one exactly as it was listed."""
    if isinstance(range_, Interval):
        return typed(float(value), whole=range_.whole)
    if range_.step is None:
        return str(value)
    return min(range_.values, key=lambda listed: abs(float(listed) - float(value)))


def _value(range_: Range, word: str) -> Any:
    """The word as Optuna's value, within the bounds that rounding may have crossed."""
    if not isinstance(range_, Interval) and range_.step is None:
        return word
    number = float(word)
    if isinstance(range_, Interval):
        number = min(max(number, range_.low), range_.high)
    return round(number) if _is_whole(range_) else number
