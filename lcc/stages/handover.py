"""Handover to a person: a threshold of the FAQ's coverage chosen on held-out questions, and what it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import DataError
from lcc.core.progress import Measure
from lcc.pipeline.stage import Outcome

if TYPE_CHECKING:
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row


@dataclass(frozen=True)
class Case:
    """A question: how much of it the best entry covers, and whether the right one was found.

    Questions that the FAQ has no answer to have no right entry.
    """

    coverage: float
    is_known: bool
    is_right: bool


@card
class Handover:
    """The lowest threshold of coverage at which at most `max_wrong` of what is answered is wrong.

    Wrong is an answer from entries without the right one. Chosen on the validation split, told of
    the test split; set it by task.grounding.threshold.
    """

    reads: ClassVar[tuple[Noun, ...]] = ("task", "data")
    accepts: ClassVar[tuple[Form, ...]] = ("dense", "packed", "adapted")
    changes_model: ClassVar[bool] = False
    word: ClassVar[str] = "handover"
    revision: ClassVar[int] = 3  # 1 counted stop words, 2 the best covered of all entries

    max_wrong: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        task = context.required_task
        if task.grounding is None:
            raise DataError(f"handover: task {task.name!r} is grounded in nothing; set task.grounding.file.")
        level = threshold(cases(task, context.data.rows("validation")), self.max_wrong)
        chosen = math.floor(1000 * level) / 1000  # as it will be written
        outcome = Outcome(measures={"threshold": Measure(chosen)})
        by_split = {split: cases(task, context.data.rows(split)) for split in ("validation", "test")}
        outcome.tables["handover"] = [{"split": s, **shares(c, chosen)} for s, c in by_split.items()]
        test = outcome.tables["handover"][1]
        outcome.measures.update({key: Measure(test[key], "share") for key in SHARES})
        outcome.notes.append(
            f"Hand over below a coverage of {chosen:.3f} (task.grounding.threshold={chosen:.3f}): "
            f"the lowest at which at most {self.max_wrong:.0%} of the answered validation "
            f"questions miss the right entry. On {len(by_split['test'])} test questions "
            f"{test['answered_share']:.0%} are answered, {test['wrong_share']:.0%} of them wrong; "
            f"{test['caught_share']:.0%} of the questions that the FAQ does not answer go to a "
            f"person, and {test['lost_share']:.0%} of those that it does."
        )
        return outcome


SHARES = ("answered_share", "wrong_share", "caught_share", "lost_share")


def cases(task: Task, rows: Sequence[Row]) -> list[Case]:
    """Every row's question put to the FAQ; the row's own answer says which entry is right."""
    grounding: Any = task.grounding
    known = {entry.answer for entry in grounding.all}
    listed = []
    for row in rows:
        entries, coverage = grounding.nearest_entries([task.question(row)])
        wanted = task.completion(row).strip()
        listed.append(Case(coverage, wanted in known, any(e.answer == wanted for e in entries)))
    return listed


def threshold(asked_cases: Sequence[Case], max_wrong: float) -> float:
    """The lowest coverage from which on at most `max_wrong` of the cases are wrong; 1: none is."""
    for level in sorted({0.0, *(case.coverage for case in asked_cases)}):
        answered = [case for case in asked_cases if case.coverage >= level]
        if sum(not case.is_right for case in answered) <= max_wrong * len(answered):
            return level
    return 1.0


def shares(asked_cases: Sequence[Case], level: float) -> dict[str, float]:
    """What a threshold does: answered; wrong among these; caught, lost among those handed over."""
    answered = [case for case in asked_cases if case.coverage >= level]
    strange = [case for case in asked_cases if not case.is_known]
    known = [case for case in asked_cases if case.is_known]
    return {
        "questions": float(len(asked_cases)),
        "answered_share": _share(answered, asked_cases),
        "wrong_share": _share([c for c in answered if not c.is_right], answered),
        "caught_share": _share([c for c in strange if c.coverage < level], strange),
        "lost_share": _share([c for c in known if c.coverage < level], known),
    }


def _share(part: Sequence[Case], whole: Sequence[Case]) -> float:
    return len(part) / len(whole) if whole else 0.0
