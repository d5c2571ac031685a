"""What a task's baseline reaches on an evaluation's samples, and whether the model beats it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core.catalog import name_of
from lcc.parts.bootstrap import interval, paired
from lcc.parts.metrics import Answer
from lcc.stage import Measure, Outcome

if TYPE_CHECKING:
    from lcc.parts.bootstrap import Floats, Interval
    from lcc.parts.metrics import Metric
    from lcc.parts.model import Bundle
    from lcc.parts.task import Row, Task


@dataclass(frozen=True)
class Beside:
    """`training` rows are all that a baseline learns from; `weights` draw the resamples."""

    task: Task
    training: Sequence[Row]
    weights: Floats

    def tell(self, rows: Sequence[Row], answers: Sequence[Answer], outcome: Outcome) -> None:
        """Add the table `baseline` and what it is; metrics that score no answer stay out."""
        baseline = self.task.baseline
        said = baseline.outputs(self.task, self.training, rows)
        theirs = [dataclasses.replace(one, output=text, finished=True)
                  for one, text in zip(answers, said, strict=True)]  # fmt: skip
        judged = [metric for metric in self.task.metrics if metric.needs == "answers"]
        outcome.tables["baseline"] = [self._row(metric, answers, theirs) for metric in judged]
        outcome.measures["baseline"] = Measure(f"{name_of(baseline)}: {baseline.said}")

    def _row(
        self, metric: Metric, mine: Sequence[Answer], theirs: Sequence[Answer]
    ) -> dict[str, Any]:
        language = self.task.language
        own = metric.statistics(mine, language=language)
        other = metric.statistics(theirs, language=language)
        base = interval(other, metric.score, self.weights)
        delta = paired(own, other, metric.score, self.weights)
        return {"metric": name_of(metric), "baseline": name_of(self.task.baseline),
                "unit": metric.unit, "value": base.value, "low": base.low, "high": base.high,
                "delta": delta.value, "delta_low": delta.low, "delta_high": delta.high,
                "verdict": _word(delta, metric.higher_is_better)}  # fmt: skip


def _word(delta: Interval, higher_is_better: bool) -> str:
    """better or worse where the whole interval says so."""
    low, high = (delta.low, delta.high) if higher_is_better else (-delta.high, -delta.low)
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def baseline_answers(
    bundle: Bundle, task: Task, training: Sequence[Row], rows: Sequence[Row], outcome: Outcome
) -> list[Answer]:
    """What the baseline says, in place of a model that has no head for the task yet."""
    said = task.baseline.outputs(task, training, rows)
    outcome.notes.append(f"The model has no trained {task.head} head yet: the baseline answers in "
                         f"its place ({task.baseline.said}).")  # fmt: skip
    return [Answer(str(row["id"]), task.source(row), task.completion(row).strip(), text)
            for row, text in zip(rows, said, strict=True)]  # fmt: skip
