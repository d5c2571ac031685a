"""Samplers: the same question has the same answer, and searches find what is good."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import pytest

from lcc.config.search_space import Direction, Interval, Listed, Search, SearchTrial
from lcc.core.errors import RecipeError
from lcc.methods.samplers.grid import Grid
from lcc.methods.samplers.nsga2 import Nsga2
from lcc.methods.samplers.random import Random
from lcc.methods.samplers.tpe import Tpe

LR = Interval("lr", 1e-5, 1e-1, log=True)
RANK = Interval("rank", 2, 32, whole=True)
BITS = Listed("bits", ("2", "4", "8"))
STEPS = Listed("depth", ("2", "4", "6", "8"), step=2.0)
ALL = (LR, RANK, BITS, STEPS)


def searched(sampler: Any, search: Search, judge: Callable[[dict[str, str]], tuple[float, ...]]) -> Search:
    """The search with every trial that the sampler asks for, judged at once."""
    while (trial := sampler.ask(search)) is not None:
        done = replace(trial, state="finished", values=judge(trial.chosen))
        # Through JSON, as a driver that was killed reads it back.
        kept = SearchTrial(**json.loads(json.dumps(asdict(done))))
        search = replace(search, trials=(*search.trials, replace(kept, values=done.values)))
    return search


def test_the_grid_is_every_combination_in_the_order_written() -> None:
    search = Search((Listed("a", ("1", "2")), BITS), {})
    assert Grid().total(search) == 6
    asked = [t.chosen for t in searched(Grid(), search, lambda chosen: ()).trials]
    assert asked == [{"a": a, "bits": b} for a in ("1", "2") for b in ("2", "4", "8")]


def test_without_ranges_the_grid_is_one_point() -> None:
    assert [t.chosen for t in searched(Grid(), Search((), {}), lambda c: ()).trials] == [{}]


def test_random_draws_lie_within_their_ranges_and_come_again_after_a_crash() -> None:
    sampler = Random(trials=40, seed=3)
    search = searched(sampler, Search(ALL, {}), lambda chosen: ())
    assert len(search.trials) == 40
    for trial in search.trials:
        assert 1e-5 <= float(trial.chosen["lr"]) <= 1e-1
        assert 2 <= int(trial.chosen["rank"]) <= 32
        assert trial.chosen["bits"] in BITS.values and trial.chosen["depth"] in STEPS.values
    below = sum(float(trial.chosen["lr"]) < 1e-3 for trial in search.trials)
    assert 10 <= below <= 30  # half of them, on a logarithmic scale
    again = sampler.ask(replace(search, trials=search.trials[:17]))
    assert again is not None and again.chosen == search.trials[17].chosen


def test_an_interval_has_no_grid() -> None:
    with pytest.raises(RecipeError) as caught:
        Grid().check(Search((LR,), {}))
    assert str(caught.value) == (
        "'lr': sampler=grid cannot try every number of an interval; list values (1e-4,1e-3), or "
        "choose sampler=random, tpe or nsga2."
    )


def test_a_random_search_of_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^sampler=random has nothing to choose; give a word"):
        Random().check(Search((), {}))


class TestWithOptuna:
    """What needs the package; the driver says so where it is missing."""

    @pytest.fixture(autouse=True)
    def _optuna(self) -> None:
        pytest.importorskip("optuna", reason="optuna is not installed: pip install 'lcc[optuna]'")

    def test_tpe_finds_the_good_corner_better_than_chance(self) -> None:
        def loss(chosen: dict[str, str]) -> tuple[float, ...]:
            rank, bits = int(chosen["rank"]), int(chosen["bits"])
            return (abs(rank - 20) / 30 + (8 - bits) / 6 + abs(int(chosen["depth"]) - 6) / 4,)

        search = Search((RANK, BITS, STEPS), {"loss": "minimize"})
        later: dict[type[Any], float] = {Tpe: 0.0, Random: 0.0}
        for seed in range(3):
            for sampler in (Tpe(trials=40, startup=10, seed=seed), Random(trials=40, seed=seed)):
                trials = searched(sampler, search, loss).trials[20:]
                later[type(sampler)] += sum(trial.values[0] for trial in trials)
        assert later[Tpe] < 0.7 * later[Random]

    @pytest.mark.parametrize("sampler", [Tpe(trials=12, startup=4), Nsga2(trials=12, population=4)])
    def test_the_same_question_has_the_same_answer(self, sampler: Any) -> None:
        search = Search(ALL, {"a": "maximize", "b": "minimize"})
        found = searched(sampler, search, lambda c: (float(c["lr"]), float(c["rank"])))
        for n in (0, 3, 7, 11):
            again = sampler.ask(replace(search, trials=found.trials[:n]))
            assert again is not None and again.chosen == found.trials[n].chosen
        assert len(found.trials) == 12 and sampler.ask(found) is None

    def test_nsga2_breeds_from_the_front_and_not_at_random(self) -> None:
        def judge(chosen: dict[str, str]) -> tuple[float, ...]:
            at = [float(value) for value in chosen.values()]
            return sum(x**2 for x in at), sum((x - 2) ** 2 for x in at)

        goals: dict[str, Direction] = {"f": "minimize", "g": "minimize"}
        search = Search(tuple(Interval(name, -10, 10) for name in "xyz"), goals)
        later: dict[type[Any], float] = {Nsga2: 0.0, Random: 0.0}
        for seed in range(3):
            for sampler in (Nsga2(trials=60, population=10, seed=seed), Random(trials=60)):
                trials = searched(sampler, search, judge).trials
                later[type(sampler)] += median(sum(trial.values) for trial in trials[-20:])
                if isinstance(sampler, Nsga2):
                    generations = [next(iter(trial.memory.values())) for trial in trials]
                    assert generations == [n // 10 for n in range(60)]
        assert later[Nsga2] < 0.5 * later[Random]

    def curves(self, losses: list[float]) -> Search:
        """Finished points with falling losses, and one that runs with `losses` so far."""
        done = [
            SearchTrial({"bits": "4"}, "finished", (n / 10,), {s: 1 / s + n / 10 for s in range(1, 9)})
            for n in range(5)
        ]
        runs = SearchTrial({"bits": "8"}, "running", (), dict(enumerate(losses, 1)))
        return Search((BITS,), {"bleu": "maximize"}, (*done, runs))

    def test_a_point_that_trains_worse_than_the_median_is_stopped(self) -> None:
        assert Tpe().prunes(self.curves([9.0, 9.0, 9.0]), 5)
        assert not Tpe().prunes(self.curves([0.9, 0.4, 0.3]), 5)
        assert not Tpe(prune="none").prunes(self.curves([9.0, 9.0, 9.0]), 5)
        assert not Tpe(prune_after=4).prunes(self.curves([9.0, 9.0, 9.0]), 5)
        assert not Tpe().prunes(self.curves([]), 5)

    def test_with_several_objectives_nothing_is_stopped_and_asking_for_it_is_refused(self) -> None:
        search = replace(self.curves([9.0] * 3), objectives={"bleu": "maximize", "b": "minimize"})
        assert not Tpe().prunes(search, 5)
        with pytest.raises(RecipeError) as caught:
            Tpe(prune="median").check(search)
        assert str(caught.value) == (
            "sampler.prune: median compares points by one objective, and there are 2; choose "
            "sampler.prune=none or keep one objective."
        )

    def test_a_search_without_a_goal_is_refused(self) -> None:
        for sampler, name in ((Tpe(), "tpe"), (Nsga2(), "nsga2")):
            with pytest.raises(RecipeError, match=rf"^sampler={name} needs objectives to learn"):
                sampler.check(Search((BITS,), {}))
