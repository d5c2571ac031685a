"""Points where good ones were dense (TPE; Bergstra et al., 2011), bad ones stopped early."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card
from lcc.config.search_space import Search, SearchTrial, require_objectives, require_ranges
from lcc.core.errors import RecipeError
from lcc.methods.samplers._optuna import frozen_trial, next_trial, optuna_for, seed_of, study_of


@card
class Tpe:
    """`trials` points, the first `startup` of them random.

    While a point trains, `watch` (a column of its training curve, lower is better) is compared with
    the finished points at the same step: `median` stops what is worse than half of them, `halving`
    keeps a third at each rung (Li et al., 2018). `auto` is the median with one objective and none
    with several, as several know no single order.
    """

    word: ClassVar[str] = "tpe"
    revision: ClassVar[int] = 1
    adaptive: ClassVar[bool] = True

    trials: Annotated[int, Field(ge=1)] = 32
    startup: Annotated[int, Field(ge=1)] = 8
    seed: Annotated[int, Field(ge=0)] = 0
    prune: Literal["auto", "median", "halving", "none"] = "auto"
    watch: str = "validation_loss"
    prune_after: Annotated[int, Field(ge=0)] = 0  # training steps that every point may take

    def check(self, search: Search) -> None:
        optuna_for("tpe")
        require_ranges(search, "tpe")
        require_objectives(search, "tpe")
        if len(search.objectives) > 1 and self.prune in ("median", "halving"):
            raise RecipeError(
                f"sampler.prune: {self.prune} compares points by one objective, and there are "
                f"{len(search.objectives)}; choose sampler.prune=none or keep one objective."
            )

    def total(self, search: Search) -> int:
        return self.trials

    def ask(self, search: Search) -> SearchTrial | None:
        if len(search.trials) >= self.trials:
            return None
        optuna = optuna_for("tpe")
        sampler = optuna.samplers.TPESampler(
            seed=seed_of(search, self.seed), n_startup_trials=self.startup, constant_liar=True
        )
        return next_trial(search, sampler, "tpe")

    def prunes(self, search: Search, index: int) -> bool:
        """Whether trial `index` is so much worse than others at its step that it should end."""
        if self.prune == "none" or len(search.objectives) > 1 or not search.trials[index].curve:
            return False
        # The watched number is a loss, whatever the objective is: compare as a minimization.
        losses = Search(search.ranges, dict.fromkeys(search.objectives, "minimize"), search.trials)
        study = study_of(losses, "tpe")
        trial = frozen_trial(losses, search.trials[index], "tpe")
        return bool(self._pruner().prune(study, trial))

    def _pruner(self) -> Any:
        pruners = optuna_for("tpe").pruners
        if self.prune == "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=max(self.prune_after, 1), reduction_factor=3)
        return pruners.MedianPruner(n_startup_trials=min(self.startup, 4), n_warmup_steps=self.prune_after)
