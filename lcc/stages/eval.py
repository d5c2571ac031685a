"""Evaluation of one checkpoint on held-out samples, with intervals and verdicts against earlier ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card, name_of
from lcc.core.errors import DataError
from lcc.core.progress import Measure
from lcc.evaluation.bootstrap import draws, interval, paired, rule, verdict
from lcc.evaluation.metrics import (
    Metric,
    Prediction,
    chosen_rows,
    read_answers,
    require_same_samples,
    write_answers,
)
from lcc.evaluation.predict import Predictor, majority
from lcc.evaluation.score import context_length, guesses, most_frequent
from lcc.methods.objectives.masked import Masked
from lcc.methods.objectives.next_sentence import NextSentence
from lcc.models.bundle import open_bundle
from lcc.pipeline.stage import Outcome
from lcc.stages._corpus import material_of, sentences
from lcc.store.runs import MetricFacts
from lcc.tasks.encode import pad_id
from lcc.training.pretraining import Document, DrawnExamples, Encoding, Objective, TextRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Form
    from lcc.evaluation.bootstrap import ConfidenceInterval, Floats
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row

SIDES = ("base", "reference")
PER_TOKEN = ("perplexity", "masked_accuracy", "unigram_accuracy")  # of the model's own vocabulary
NATIVE_TOKENS = 4  # packed weights without a fast kernel run at about one token a second


@card
class Eval:
    """The task's metrics over `samples` rows of `split`, the same rows for every checkpoint.

    `shots: null` shows as many examples as the task says. `keep_ratio` is the share of the
    reference's score that a checkpoint must keep for the verdict "kept".
    """

    reads: ClassVar[tuple[Noun, ...]] = ("task", "data", "seed", "device", "dtype")
    accepts: ClassVar[tuple[Form, ...]] = ("dense", "packed", "adapted")
    changes_model: ClassVar[bool] = False
    word: ClassVar[str] = "eval"
    revision: ClassVar[int] = 1

    samples: Annotated[int, Field(ge=2)] = 300
    split: Literal["train", "validation", "test"] = "test"
    batch_size: Annotated[int, Field(ge=1)] = 32
    shots: Annotated[int, Field(ge=0)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    window: Annotated[int, Field(ge=8)] = 1024
    stride: Annotated[int, Field(ge=1)] = 512
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.95

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        task = self._task(context)
        rows = chosen_rows(context.data.rows(self.split), self.samples, self.split)
        outcome = Outcome()
        answers = self._answers(bundle, context, task, rows, outcome)
        tables = {name_of(m): m.statistics(answers, language=task.language) for m in task.metrics}
        _record(outcome, task, answers)
        # What readers of the report need to know of a metric, also where its plug-in is not installed.
        facts = {name_of(metric): MetricFacts.of(metric, name_of(metric)) for metric in task.metrics}
        outcome.tables["metrics"] = [{"metric": n, **dataclasses.asdict(f)} for n, f in facts.items()]
        outcome.measures["vocabulary_size"] = Measure(len(bundle.tokenizer), "count")
        comparison = Comparison(self, task, tables, draws(len(rows), self.bootstrap, context.seed))
        comparison.own(outcome)
        earlier = {side: context.inputs[side] for side in SIDES if side in context.inputs}
        for side, folder in earlier.items():
            comparison.against(side, folder, answers, outcome)
        if earlier:
            outcome.notes.append(rule(self.keep_ratio, self.bootstrap))
        if task.baseline is not None:
            beside = BaselineComparison(task, context.data.rows("train"), comparison.weights)
            beside.report(rows, answers, outcome)
        outcome.files["samples.jsonl"] = write_answers(
            context.folder / "samples.jsonl", _with_scores(answers, tables, task)
        )
        return outcome

    def _task(self, context: Context) -> Task:
        task = context.required_task.for_data(context.data)
        if not task.metrics:
            raise DataError(f"task {task.name!r} has no metrics; add task.metrics, e.g. [accuracy].")
        if self.max_new_tokens is None:
            return task
        decode = dataclasses.replace(task.decode, max_new_tokens=self.max_new_tokens)
        return dataclasses.replace(task, decode=decode)

    def _answers(
        self, bundle: Bundle, context: Context, task: Task, rows: list[Row], outcome: Outcome
    ) -> list[Prediction]:
        if bundle.lacks_head(task.head):
            if task.baseline is not None:
                return baseline_answers(bundle, task, context.data.rows("train"), rows, outcome)
            return _without_head(bundle, task, context.data.rows("train"), rows, outcome)
        num_shots = task.shots if self.shots is None else self.shots
        demos = task.draw(context.data.rows("train"), context.seed, num_shots)
        needs = {metric.needs for metric in task.metrics}
        with context.progress.track("evaluate", total=len(rows), unit="sample") as bar:
            model = Predictor(
                bundle.load(device=context.device, dtype=context.dtype),
                bundle.tokenizer,
                task,
                demos=demos,
                batch_size=self.batch_size,
                window=self.window,
                stride=self.stride,
                advance=lambda n: bar.advance(n),
            )
            answers = model.answers(rows, needs)
            if "guesses" in needs:
                asked = MaskedGuessing(
                    task,
                    context.data.rows("train"),
                    context.seed,
                    window=self.window,
                    batch_size=self.batch_size,
                    advance=bar.advance,
                )
                answers = asked.counted(answers, rows, model.module, bundle.tokenizer)
        outcome.measures.update(self._protocol(task, needs, num_shots, context.dtype))
        if bundle.card.form == "packed":
            _compare_native(bundle, model, rows, outcome)
        return answers

    def _protocol(self, task: Task, needs: set[str], num_shots: int, dtype: str) -> dict[str, Measure]:
        """How it was measured, in words and numbers that stand beside the scores."""
        measures = {"num_shots": Measure(num_shots, "count")}
        if "answers" in needs and task.is_ranked:
            names = ", ".join(map(repr, task.label_names))
            measures["decoding"] = Measure(f"the likeliest of the labels {names}, {dtype}")
        elif "answers" in needs and task.head in ("causal", "seq2seq"):
            how = task.decode
            search = "greedy" if how.num_beams == 1 else f"{how.num_beams} beams"
            ratio = f" and {how.max_length_ratio:g} × the prompt" if how.max_length_ratio else ""
            stop = f", stop at {' or '.join(map(repr, how.stop))}" if how.stop else ""
            measures["decoding"] = Measure(
                f"{search}, at most {how.max_new_tokens} new tokens{ratio}{stop}, {dtype}; "
                "the checkpoint's own sampling settings are not used"
            )
        if "likelihood" in needs:
            text = (
                f"whole texts, windows of {self.window} tokens, stride {self.stride}, each window "
                "opened by BOS where the tokenizer has one, every token predicted once"
                if not task.template
                else "completions given their prompts, end token left out"
            )
            measures["likelihood_protocol"] = Measure(text)
        if "guesses" in needs:
            measures["guessing_protocol"] = Measure(
                f"15 % of the tokens hidden, 80 % of these masked, 10 % swapped, pieces of at most "
                f"{self.window} tokens; the same for every checkpoint of one vocabulary"
            )
        return measures


@dataclass(frozen=True)
class Comparison:
    """One checkpoint's statistics (metric → (samples, columns)) beside those of others."""

    options: Eval
    task: Task
    statistics: dict[str, Floats]
    weights: Floats

    def own(self, outcome: Outcome) -> None:
        """Each metric with its interval and signature."""
        for metric in self.task.metrics:
            name = name_of(metric)
            bounds = interval(self.statistics[name], metric.score, self.weights)
            outcome.measures.update(_measures(name, bounds, metric.unit))
        for metric in self.task.metrics:
            signature = metric.signature(self.task.language)
            outcome.measures[f"{name_of(metric)}_signature"] = Measure(signature)

    def against(self, side: str, folder: Path, answers: list[Prediction], outcome: Outcome) -> None:
        """Differences to an earlier evaluation on the same samples; a verdict on the first."""
        other = read_answers(folder)
        require_same_samples(answers, other, side)
        verdict = None
        for metric in self.task.metrics:
            name = name_of(metric)
            if name in PER_TOKEN and not _same_vocabulary(folder, outcome):
                title = name.replace("_", " ").capitalize()
                way_out = "; bits per byte may be" if name == "perplexity" else ""
                outcome.notes.append(
                    f"{title} is not compared with the {side}: the vocabularies differ{way_out}."
                )
                continue
            theirs = metric.statistics(other, language=self.task.language)
            delta = paired(self.statistics[name], theirs, metric.score, self.weights)
            outcome.measures.update(_measures(f"{name}_delta_{side}", delta, metric.unit))
            word = self._word(metric, delta, theirs)
            verdict = verdict or word
            outcome.measures[f"{name}_verdict_{side}"] = Measure(word)
        if verdict is not None:
            name = "verdict" if side == "reference" else f"verdict_{side}"
            outcome.measures[name] = Measure(verdict)

    def _word(self, metric: Metric, delta: ConfidenceInterval, theirs: Floats) -> str:
        return verdict(
            delta,
            float(metric.score(theirs.sum(axis=0))),
            keep_ratio=self.options.keep_ratio,
            higher_is_better=metric.higher_is_better,
        )


def _measures(name: str, bounds: ConfidenceInterval, unit: str) -> dict[str, Measure]:
    return {
        name: Measure(bounds.value, unit),
        f"{name}_low": Measure(bounds.low, unit),
        f"{name}_high": Measure(bounds.high, unit),
    }


def _record(outcome: Outcome, task: Task, answers: list[Prediction]) -> None:
    """Counts that a reader must see beside any score."""
    outcome.measures["num_samples"] = Measure(len(answers), "count")
    if task.head in ("causal", "seq2seq") and any(a.output is not None for a in answers):
        num_empty = sum(not a.output for a in answers)
        outcome.measures["num_empty"] = Measure(num_empty, "count")
        cut = sum(not a.finished for a in answers) / len(answers)
        outcome.measures["unfinished_share"] = Measure(cut, "share")
        if num_empty:
            outcome.notes.append(
                f"{num_empty} of {len(answers)} answers are empty; they stay in every score as errors."
            )


def _without_head(
    bundle: Bundle, task: Task, training: Sequence[Row], rows: list[Row], outcome: Outcome
) -> list[Prediction]:
    if task.head != "classify" and not task.is_cloze:
        raise DataError(
            f"model {bundle.card.name!r} has no trained {task.head} head for task "
            f"{task.name!r}; choose another model or fine-tune it first."
        )
    answers = majority(task, training, rows)
    outcome.notes.append(
        f"The model has no trained {task.head} head yet: this baseline answers every sample "
        f"with the training split's most frequent class, {answers[0].output!r}."
    )
    return answers


def _same_vocabulary(folder: Path, outcome: Outcome) -> bool:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    theirs = report["measures"].get("vocabulary_size", {}).get("value")
    return bool(theirs == outcome.measures["vocabulary_size"].value)


def _compare_native(bundle: Bundle, dense: Predictor, rows: list[Row], outcome: Outcome) -> None:
    """One short sample through the packed weights themselves: do they say the same?"""
    assert bundle.path is not None
    native = open_bundle(bundle.path).load(native=True)
    row = min(rows, key=lambda r: len(dense.task.prompt(r)))
    decode = dataclasses.replace(dense.task.decode, max_new_tokens=NATIVE_TOKENS)
    short = dataclasses.replace(
        dense, task=dataclasses.replace(dense.task, decode=decode), demos=(), advance=lambda n: None
    )
    packed = dataclasses.replace(short, module=native)
    texts = [model.outputs([row])[0][0] for model in (short, packed)]
    is_same = texts[0] == texts[1]
    comparison = "the same output" if is_same else f"{texts[1]!r} instead of {texts[0]!r}"
    outcome.measures["native_output"] = Measure("same" if is_same else "different")
    outcome.notes.append(
        "Packed weights were dequantized for speed of evaluation; through their "
        f"own format one short sample gives {comparison}."
    )


def _with_scores(answers: list[Prediction], statistics: dict[str, Floats], task: Task) -> list[Prediction]:
    """Each sample with its own score under every metric."""
    each = {name_of(m): m.score(statistics[name_of(m)]).tolist() for m in task.metrics}
    return [
        dataclasses.replace(one, scores={name: round(each[name][i], 6) for name in each})
        for i, one in enumerate(answers)
    ]


# Masked language models: hidden tokens of the held-out rows, and how many the model predicts.

FREQUENT_ROWS = 2000  # training rows whose tokens are counted for the baseline


@dataclasses.dataclass(frozen=True)
class MaskedGuessing:
    """`training` rows give the most frequent token, `seed` draws what is hidden."""

    task: Task
    training: Sequence[Row]
    seed: int
    window: int
    batch_size: int
    advance: Callable[[float], None]

    def counted(
        self, answers: list[Prediction], rows: Sequence[Row], module: Any, tokenizer: PreTrainedTokenizerBase
    ) -> list[Prediction]:
        """The answers with what was hidden in each and how much of it was guessed."""
        encode = Encoding(tokenizer, ends=False)
        seen = encode([[self.task.text(row)] for row in self.training[:FREQUENT_ROWS]])
        frequent = most_frequent(one.ids for one in seen)
        counts: list[dict[str, float]] = [{} for _ in rows]
        for objective in self._objectives():
            # A text of one sentence makes no pair; its tokens can be guessed all the same.
            documents = [
                [] if counted.get("masked") else self._document(row, objective)
                for row, counted in zip(rows, counts, strict=True)
            ]
            corpus = TextRows.of(encode(documents))
            length = min(self.window, context_length(module))
            drawing = DrawnExamples(
                objective, material_of(corpus, tokenizer, length=length), seed=self.seed, split="eval"
            )
            more = guesses(
                module,
                drawing,
                pad=pad_id(tokenizer),
                frequent=frequent,
                batch_size=self.batch_size,
                advance=self.advance,
            )
            counts = [
                {n: counted.get(n, 0.0) + value for n, value in new.items()}
                for counted, new in zip(counts, more, strict=True)
            ]
        return [
            dataclasses.replace(one, counts=counted) for one, counted in zip(answers, counts, strict=True)
        ]

    def _objectives(self) -> list[Objective]:
        if self.task.head == "masked":
            return [Masked()]
        if self.task.head == "paired":
            return [NextSentence(), Masked()]
        raise DataError(
            f"task {self.task.name!r}: head {self.task.head} hides no tokens; drop "
            "masked_accuracy and its like from task.metrics."
        )

    def _document(self, row: Row, objective: Objective) -> Document:
        text = self.task.text(row)
        return sentences([text]) if objective.by_sentence else [text]


# The task's baseline on the samples of an evaluation, and whether the model beats it.


@dataclass(frozen=True)
class BaselineComparison:
    """`training` rows are all that a baseline learns from; `weights` draw the resamples."""

    task: Task
    training: Sequence[Row]
    weights: Floats

    def report(self, rows: Sequence[Row], answers: Sequence[Prediction], outcome: Outcome) -> None:
        """Add the table `baseline` and what it is; metrics that score no answer stay out."""
        baseline = self.task.baseline
        unpadded_outputs = baseline.outputs(self.task, self.training, rows)
        theirs = [
            dataclasses.replace(one, output=text, finished=True)
            for one, text in zip(answers, unpadded_outputs, strict=True)
        ]
        judged = [metric for metric in self.task.metrics if metric.needs == "answers"]
        outcome.tables["baseline"] = [self._row(metric, answers, theirs) for metric in judged]
        outcome.measures["baseline"] = Measure(f"{name_of(baseline)}: {baseline.description}")

    def _row(
        self, metric: Metric, mine: Sequence[Prediction], theirs: Sequence[Prediction]
    ) -> dict[str, Any]:
        language = self.task.language
        own = metric.statistics(mine, language=language)
        other = metric.statistics(theirs, language=language)
        base = interval(other, metric.score, self.weights)
        delta = paired(own, other, metric.score, self.weights)
        return {
            "metric": name_of(metric),
            "baseline": name_of(self.task.baseline),
            "unit": metric.unit,
            "value": base.value,
            "low": base.low,
            "high": base.high,
            "delta": delta.value,
            "delta_low": delta.low,
            "delta_high": delta.high,
            "verdict": _word(delta, metric.higher_is_better),
        }


def _word(delta: ConfidenceInterval, higher_is_better: bool) -> str:
    """better or worse where the whole interval says so."""
    low, high = (delta.low, delta.high) if higher_is_better else (-delta.high, -delta.low)
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def baseline_answers(
    bundle: Bundle, task: Task, training: Sequence[Row], rows: Sequence[Row], outcome: Outcome
) -> list[Prediction]:
    """What the baseline says, in place of a model that has no head for the task yet."""
    unpadded_outputs = task.baseline.outputs(task, training, rows)
    outcome.notes.append(
        f"The model has no trained {task.head} head yet: the baseline answers in "
        f"its place ({task.baseline.description})."
    )
    return [
        Prediction(str(row["id"]), task.source(row), task.completion(row).strip(), text)
        for row, text in zip(rows, unpadded_outputs, strict=True)
    ]
