"""Results of a run, one row per checkpoint: its size, quality and speed; numbers, no text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from lcc.config.cards import find_card
from lcc.config.cards import names as card_names
from lcc.core import format
from lcc.reports.document import Cell, Column, Table, Tone
from lcc.store.runs import MetricFacts, RunFacts, RunStep, StepReport

TRAINING = ("finetune", "distill", "pretrain")  # kinds of steps
GOOD_VERDICTS, BAD_VERDICTS = ("kept", "gained", "better"), ("lost", "worse")


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % interval, where one was computed."""

    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    metric: MetricFacts | None = None  # None of a difference


@dataclass(frozen=True)
class Delta:
    """The difference of one metric to an earlier checkpoint, on the same samples."""

    metric: str
    against: str
    score: Score
    verdict: str = ""


@dataclass(frozen=True)
class Speed:
    """One line of the bench: one checkpoint at one batch size."""

    batch_size: int | None = None
    backend: str = ""  # how weights were run: dense, as stored, dequantized, in a format
    prefill: float | None = None  # tokens/s
    decode: float | None = None  # tokens/s
    texts: float | None = None  # texts/s, of a model that generates nothing
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    peak_memory_bytes: float | None = None

    @property
    def rate(self) -> float | None:
        """What a user waits for: decoded tokens, or answered texts, a second."""
        return self.decode or self.texts

    @property
    def unit(self) -> str:
        return "tokens/s" if self.decode else "texts/s"


@dataclass(frozen=True)
class CheckpointRow:
    """The facts of one checkpoint of a run."""

    checkpoint: str
    step: str
    kind: str
    key: str
    parameters: float | None = None
    bytes: float | None = None
    size_ratio: float | None = None  # of the run's first checkpoint
    trained: bool = False  # whether any step that led to it was a training step
    scores: dict[str, Score] = field(default_factory=dict)
    against_reference: dict[str, Delta] = field(default_factory=dict)  # by metric, judged first
    against_base: dict[str, Delta] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)

    @property
    def to_reference(self) -> Delta | None:
        """The difference that the verdict is about, to the last model before compression."""
        return next(iter(self.against_reference.values()), None)

    @property
    def to_base(self) -> Delta | None:
        """The same to the run's first evaluated model."""
        return next(iter(self.against_base.values()), None)

    @property
    def speed(self) -> Speed:
        """The bench at the smallest batch, what one user feels; the first backend is lcc's own."""
        return self.speeds[0] if self.speeds else Speed()


def rows(run: RunFacts) -> list[CheckpointRow]:
    """Every finished checkpoint of `run`, in the order it was made."""
    speeds = _speeds(run)
    checkpoints = [_row(run, name, step, speeds.get(name, [])) for name, step in run.checkpoints.items()]
    whole = checkpoints[0].bytes if checkpoints else None
    return [_replace(row, row.bytes / whole if whole and row.bytes else None) for row in checkpoints]


def metrics(table: Iterable[CheckpointRow]) -> list[str]:
    """Every metric that any row has, in reading order."""
    rows = list(table)
    seen = dict.fromkeys(name for row in rows for name in row.scores)
    return sorted(seen, key=lambda name: metric_facts(name, rows).order)


def primary(table: Iterable[CheckpointRow]) -> str | None:
    """The metric that the verdicts are about, or else the first one."""
    listed = list(table)
    judged = [d.metric for row in listed for d in (row.to_reference, row.to_base) if d]
    return next(iter([*judged, *metrics(listed)]), None)


def metric_facts(metric: str, table: Iterable[CheckpointRow] = ()) -> MetricFacts:
    """What the evaluation wrote down of the metric; of older runs, what the installed card says.

    A metric of which neither is known keeps its own name and is taken to be better when higher.
    """
    scored = (row.scores[metric].metric for row in table if metric in row.scores)
    return next((facts for facts in scored if facts), None) or _of_card(metric.rpartition(".")[2])


def label(metric: str, table: Iterable[CheckpointRow] = ()) -> str:
    """The metric as its papers spell it, after the name of a second evaluation."""
    stage = metric.rpartition(".")[0]
    spelled = metric_facts(metric, table).label
    return f"{stage} {spelled}" if stage else spelled


def lower_is_better(metric: str, table: Iterable[CheckpointRow] = ()) -> bool:
    return not metric_facts(metric, table).higher_is_better


@cache
def _of_card(word: str) -> MetricFacts:
    if word not in card_names("metrics"):
        return MetricFacts(word.replace("_", " "))
    return MetricFacts.of(find_card("metrics", word), word)


def facts(run: RunFacts) -> dict[str, Any]:
    """Everything `lcc report --json` prints: the run, its results and its steps."""
    listed = [
        {
            "name": s.name,
            "kind": s.kind,
            "key": s.key,
            "status": s.status,
            "seconds": s.seconds,
            "notes": s.report.notes if s.report else [],
            "warnings": s.report.warnings if s.report else [],
        }
        for s in run.steps
    ]
    head = {
        k: run.facts.get(k)
        for k in ("run", "recipe_name", "command", "status", "started", "seconds", "error")
    }
    return {
        "format": 1,
        **head,
        "folder": str(run.folder),
        "steps": listed,
        "checkpoints": [asdict(row) for row in rows(run)],
    }


def _row(run: RunFacts, name: str, step: RunStep, speeds: list[Speed]) -> CheckpointRow:
    assert step.report is not None, step.name
    evaluations = [e for e in run.of_kind("eval") if checkpoint_of(run, e) == name]
    first = evaluations[0].report if evaluations else None
    return CheckpointRow(
        checkpoint=name,
        step=step.name,
        kind=step.kind,
        key=step.key,
        parameters=step.report.number("parameters"),
        bytes=step.model_bytes,
        speeds=speeds,
        trained=_was_trained(run, step),
        scores=_all_scores(run, evaluations),
        against_reference=_deltas(run, first, "reference"),
        against_base=_deltas(run, first, "base"),
    )


def _was_trained(run: RunFacts, step: RunStep) -> bool:
    if step.kind in TRAINING:
        return True
    inputs = step.report.inputs if step.report else {}
    parents = [run.with_key(inputs[name]) for name in ("adapter", "model") if name in inputs]
    return any(_was_trained(run, parent) for parent in parents if parent is not None)


def checkpoint_of(run: RunFacts, evaluation: RunStep) -> str:
    """The name of the checkpoint that an eval step judged."""
    judged = run.with_key(evaluation.report.inputs.get("model", "")) if evaluation.report else None
    spelled = evaluation.name.partition(".")[2]
    return judged.checkpoint if judged and judged.checkpoint else spelled


def _all_scores(run: RunFacts, evaluations: list[RunStep]) -> dict[str, Score]:
    """Scores by metric; those of a second eval stage carry its name before theirs."""
    stages = list(dict.fromkeys(e.name.partition(".")[0] for e in run.of_kind("eval")))
    by_name: dict[str, Score] = {}
    for evaluation in evaluations:
        stage = evaluation.name.partition(".")[0]
        prefix = "" if stage == stages[0] else f"{stage}."
        assert evaluation.report is not None, evaluation.name
        by_name.update({f"{prefix}{name}": s for name, s in scores(evaluation.report).items()})
    return by_name


def scores(report: StepReport) -> dict[str, Score]:
    """The quality figures among the measures: those with an interval, and the well-known ones."""
    return {
        name: score for name in report.measures if _is_metric(report, name) for score in _score(report, name)
    }


def is_side(name: str) -> bool:
    """Whether a measure only goes with a metric: a bound, a difference, a verdict."""
    return name.endswith(("_low", "_high")) or "_delta_" in name or "verdict" in name


def _is_metric(report: StepReport, name: str) -> bool:
    has_interval = f"{name}_low" in report.measures
    return not is_side(name) and (has_interval or name in report.metrics or name in card_names("metrics"))


def _score(report: StepReport, name: str) -> Iterator[Score]:
    value = report.number(name)
    if value is not None:
        unit = report.measures[name].unit
        low, high = report.number(f"{name}_low"), report.number(f"{name}_high")
        yield Score(value, unit, low, high, report.metrics.get(name))


def _deltas(run: RunFacts, report: StepReport | None, side: str) -> dict[str, Delta]:
    """Every metric's difference to the evaluation that stood at `side`, in the task's order."""
    if report is None:
        return {}
    suffix = f"_delta_{side}"
    names = [name.removesuffix(suffix) for name in report.measures if name.endswith(suffix)]
    earlier = run.with_key(report.inputs.get(side, ""))
    against = checkpoint_of(run, earlier) if earlier else side
    return {
        name: Delta(name, against, score, _verdict(report, name, side, names))
        for name in names
        for score in _score(report, f"{name}{suffix}")
    }


def _verdict(report: StepReport, metric: str, side: str, metrics: list[str]) -> str:
    own = report.word(f"{metric}_verdict_{side}")
    overall = report.word("verdict" if side == "reference" else f"verdict_{side}")
    return own or (overall if metric == metrics[0] else "")


def _speeds(run: RunFacts) -> dict[str, list[Speed]]:
    by_checkpoint: dict[str, list[Speed]] = {}
    for bench in run.of_kind("bench"):
        assert bench.report is not None, bench.name
        for line in bench.report.tables.get("speed", []):
            by_checkpoint.setdefault(str(line.get("checkpoint")), []).append(_speed(line))
    return {name: sorted(lines, key=lambda s: s.batch_size or 0) for name, lines in by_checkpoint.items()}


def _speed(line: dict[str, Any]) -> Speed:
    return Speed(
        line.get("batch_size"),
        str(line.get("backend") or ""),
        line.get("prefill_tokens_per_second"),
        line.get("decode_tokens_per_second"),
        line.get("texts_per_second"),
        line.get("latency_p50_seconds"),
        line.get("latency_p99_seconds"),
        line.get("peak_memory_bytes"),
    )


def _replace(row: CheckpointRow, size_ratio: float | None) -> CheckpointRow:
    return CheckpointRow(**{**row.__dict__, "size_ratio": size_ratio})


# The results as tables: every checkpoint with its quality, size and speed, in words of people.

Draw = Callable[[CheckpointRow], Cell]


def results_table(checkpoints: Sequence[CheckpointRow], *, max_metrics: int | None = None) -> Table:
    """One row per checkpoint; a column that no row fills is left out."""
    columns = _columns(checkpoints, max_metrics)
    rows = [[Cell(format.clean(row.checkpoint)), *(draw(row) for _, draw in columns)] for row in checkpoints]
    titles = [Column("checkpoint", "name"), *(Column(title) for title, _ in columns)]
    return Table("Every checkpoint on the same samples; ranges are 95 % intervals.", titles, rows)


def speed_table(checkpoints: Sequence[CheckpointRow]) -> Table:
    """Every line of the bench; columns that no line fills are left out."""
    lines = [(row, speed) for row in checkpoints for speed in row.speeds]
    candidates: list[tuple[str, list[str]]] = [
        ("backend", [format.clean(s.backend) for _, s in lines]),
        ("batch", [format.count(s.batch_size) for _, s in lines]),
        ("prefill tokens/s", [format.rate(s.prefill) for _, s in lines]),
        ("decode tokens/s", [format.rate(s.decode) for _, s in lines]),
        ("texts/s", [format.rate(s.texts) for _, s in lines]),
        ("latency p50", [format.duration(s.p50_seconds) for _, s in lines]),
        ("latency p99", [format.duration(s.p99_seconds) for _, s in lines]),
        ("peak memory", [format.size(s.peak_memory_bytes) for _, s in lines]),
    ]
    filled = [(title, texts) for title, texts in candidates if set(texts) - {"", format.MISSING}]
    rows = [
        [Cell(format.clean(row.checkpoint)), *(Cell(texts[i]) for _, texts in filled)]
        for i, (row, _) in enumerate(lines)
    ]
    columns = [Column(t, "name" if t == "backend" else "figures") for t, _ in filled]
    return Table(
        "Measured interleaved over all checkpoints, one fresh process each.",
        [Column("checkpoint", "name"), *columns],
        rows,
    )


def tone(verdict: str) -> Tone:
    """Whether a verdict is good news."""
    first = verdict.split(" ")[0].strip(":;,.").lower() if verdict else ""
    if first in GOOD_VERDICTS:
        return "good"
    return "bad" if first in BAD_VERDICTS else "unclear" if first else ""


def _columns(checkpoints: Sequence[CheckpointRow], max_metrics: int | None) -> list[tuple[str, Draw]]:
    chosen = metrics(checkpoints)[:max_metrics]
    metric = primary(checkpoints)
    change = f"change of {label(metric, checkpoints)}" if metric else "change"
    candidates: list[tuple[str, Draw, bool]] = [
        ("parameters", lambda r: Cell(format.count(r.parameters)), any(r.parameters for r in checkpoints)),
        ("on disk", _size, any(r.bytes for r in checkpoints)),
        *((label(name, checkpoints), _metric(name), True) for name in chosen),
        (change, _change, any(r.to_reference or r.to_base for r in checkpoints)),
        (
            "decode tokens/s",
            lambda r: Cell(format.rate(r.speed.decode)),
            any(r.speed.decode for r in checkpoints),
        ),
        ("texts/s", lambda r: Cell(format.rate(r.speed.texts)), any(r.speed.texts for r in checkpoints)),
        ("latency p50, p99", _latency, any(r.speed.p50_seconds for r in checkpoints)),
        (
            "peak memory",
            lambda r: Cell(format.size(r.speed.peak_memory_bytes)),
            any(r.speed.peak_memory_bytes for r in checkpoints),
        ),
    ]
    return [(title, draw) for title, draw, filled in candidates if filled]


def _size(row: CheckpointRow) -> Cell:
    return Cell(format.size(row.bytes), format.share(row.size_ratio) if row.size_ratio else "")


def _metric(name: str) -> Draw:
    def draw(row: CheckpointRow) -> Cell:
        score = row.scores.get(name)
        return Cell(format.MISSING) if score is None else _score_cell(score)

    return draw


def _score_cell(score: Score) -> Cell:
    return Cell(format.score(score.value, score.unit), format.interval(score.low, score.high, score.unit))


def _change(row: CheckpointRow) -> Cell:
    """Against the fine-tuned model where the row has one, else against the base."""
    delta = row.to_reference or row.to_base
    return Cell(format.MISSING) if delta is None else change(delta)


def change(delta: Delta) -> Cell:
    """A difference, its verdict, its interval and what it is a difference to."""
    score = delta.score
    verdict = delta.verdict.split(" ")[0].strip(":;,.") if delta.verdict else ""
    text = f"{format.score(score.value, score.unit, signed=True)} {verdict}".strip()
    low, high = score.low, score.high
    between = format.interval(low, high, score.unit, signed=True)
    return Cell(text, f"{between} vs {format.clean(delta.against)}".strip(), tone(delta.verdict))


def _latency(row: CheckpointRow) -> Cell:
    speed = row.speed
    if speed.p50_seconds is None:
        return Cell(format.MISSING)
    return Cell(format.duration(speed.p50_seconds), format.duration(speed.p99_seconds))
