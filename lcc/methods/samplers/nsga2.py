"""Evolution towards a Pareto front of several objectives (NSGA-II; Deb et al., 2002)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.config.search_space import Search, SearchTrial, require_objectives, require_ranges
from lcc.methods.samplers._optuna import next_trial, optuna_for, seed_of


@card
class Nsga2:
    """`trials` points in generations of `population`; the first generation is random."""

    word: ClassVar[str] = "nsga2"
    revision: ClassVar[int] = 1
    adaptive: ClassVar[bool] = True

    trials: Annotated[int, Field(ge=1)] = 64
    population: Annotated[int, Field(ge=2)] = 16
    seed: Annotated[int, Field(ge=0)] = 0

    def check(self, search: Search) -> None:
        optuna_for("nsga2")
        require_ranges(search, "nsga2")
        require_objectives(search, "nsga2")

    def total(self, search: Search) -> int:
        return self.trials

    def ask(self, search: Search) -> SearchTrial | None:
        if len(search.trials) >= self.trials:
            return None
        samplers = optuna_for("nsga2").samplers
        seed = seed_of(search, self.seed)
        mutants = samplers.RandomSampler(seed=seed + 1)

        class Apart(samplers.NSGAIISampler):  # type: ignore[misc,name-defined]
            """Mutants from a stream of their own.

            By default theirs has the seed of the one that chooses parents; as every question is
            seeded anew, both would draw the same numbers, and half of the progress is lost.
            """

            def sample_independent(self, *asked: Any) -> Any:
                return mutants.sample_independent(*asked)

        return next_trial(search, Apart(population_size=self.population, seed=seed), "nsga2")
