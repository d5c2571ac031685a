"""Publish an export: written, compared with its source, described, and put in place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.config.cards import describe, digest, name_of
from lcc.config.cards import find_card as card_named
from lcc.core.disk import folder_bytes, write_json
from lcc.core.errors import GateError, RecipeError
from lcc.core.machine import versions
from lcc.export.audio_parity import compare_heard, features, transcript_prompt
from lcc.export.model_card import Provenance, model_card, write_model_card
from lcc.export.parity import NEW_TOKENS, TOGETHER, Errors, Parity, alike, compare, encoded
from lcc.inference.backends.whisper import InProcessListener
from lcc.inference.session import Opening, greedy
from lcc.inference.sidecar import FAILED_FILE
from lcc.models.bundle import open_bundle
from lcc.models.card import read_card, read_json, weight_files
from lcc.store import artifact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Array
    from lcc.inference.backends.whisper import Listener
    from lcc.inference.session import Session

# How much error a format explains: what its own rounding, done in PyTorch, costs the source.

# Engine and rehearsal add in another order, so that some numbers round to another side: measured
# errors were 0.97 to 1.01 of the rehearsed ones on random models of seven families and on SmolLM2.
FACTOR = 1.25
LEAST = 0.01  # below this, sums in another order may be most of it
EVERY, ENOUGH = 4, 100  # of so many prompts, so many apart are rehearsed
NUM_SOUNDS = 6


def tolerance(exporter: Any, rehearsed: float | None) -> float:
    """What the gate allows: by the format, or by what its rounding was found to cost."""
    most = float(exporter.tolerance)
    return most if rehearsed is None else min(most, max(LEAST, FACTOR * rehearsed))


def rehearsed_error(
    exporter: Any, folder: Path, source: Session, prompts: Sequence[Sequence[int]], new_tokens: int
) -> float | None:
    """What the source is off once it is rounded as the format rounds; None where that says nothing.

    It reads what the gate has both read: the source's own answers, or the texts alone.
    """
    from lcc.inference import model_runner

    module = _rounded(exporter, folder)
    if module is None:
        return None
    rows = list(prompts[::EVERY] if len(prompts) >= ENOUGH else prompts)
    starts, head = [0] * len(rows), source.card.head
    if head == "causal":
        answers = greedy(source, rows, new_tokens)
        starts = [len(row) - 1 for row in rows]
        rows = [[*row, *answer.ids] for row, answer in zip(rows, answers, strict=True)]
    errors, known = Errors(), source.tokenizer
    for first in range(0, len(rows), TOGETHER):
        part = rows[first : first + TOGETHER]
        if head == "embed":
            mine, other = source.embed(part), model_runner.vectors(module, known, part)
        else:
            mine, other = source.logits(part), model_runner.logits(module, known, part, head)
        pairs = zip(mine, other, strict=True)
        for start, (expected, got) in zip(starts[first:], pairs, strict=False):
            errors.add(*alike(*(_rows(values)[start:] for values in (expected, got))))
    return errors.share


def rehearsed_hearing(
    exporter: Any,
    folder: Path,
    source: Listener,
    sounds: Sequence[Any],
    prompt: Sequence[int],
    *,
    new_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
) -> float | None:
    """The same of a model that hears: the larger error of its scores and its encoder's states."""
    module = _rounded(exporter, folder)
    if module is None:
        return None
    parity: Parity = compare_heard(
        source,
        InProcessListener(module),
        sounds[:NUM_SOUNDS],
        prompt,
        tolerance=1.0,
        new_tokens=new_tokens,
        tokenizer=tokenizer,
    )
    return max(parity.logit_error, parity.encoder_error or 0.0)


def _rounded(exporter: Any, folder: Path) -> Any:
    if not getattr(exporter, "rehearses", False):
        return None
    return exporter.rounded(open_bundle(folder).load(dtype="float32"))


def _rows(values: Array) -> Array:
    return values if values.ndim > 1 else values[None]


REPORT_FILE = "export.json"
LONGEST_PROMPT = 256


@dataclass
class Exported:
    """An export that passed its gate."""

    folder: Path
    facts: dict[str, Any]
    parity: Parity
    bytes: int


@dataclass(frozen=True)
class ParityTrial:
    """What an export is compared on: `prompts` of the task, or None for the fixed ones."""

    prompts: Sequence[Sequence[int]] | None = None
    new_tokens: int = NEW_TOKENS
    threads: int = 1


@dataclass
class _WrittenExport:
    facts: dict[str, Any]
    parity: Parity
    refusals: list[str] = field(default_factory=list)


def publish(
    source: Path, target: Path, exporter: Any, *, trial: ParityTrial, origin: Provenance | None = None
) -> Exported:
    """Write `source` as `target`, a folder that is not there yet.

    Until the gate has passed the files lie in `TARGET.partial`; where it closes they are kept in
    `TARGET.failed` with both outputs in FAILED.json, and GateError is raised.
    """
    draft, failed = (target.with_name(f"{target.name}.{word}") for word in ("partial", "failed"))
    made = write_and_compare(source, draft, exporter, trial=trial, origin=origin or Provenance())
    if made.refusals:
        shutil.rmtree(failed, ignore_errors=True)
        draft.rename(failed)
        raise GateError(closed(exporter, made.parity, made.refusals, failed))
    draft.rename(target)
    return Exported(target, made.facts, made.parity, folder_bytes(target))


def write_and_compare(
    source: Path, folder: Path, exporter: Any, *, trial: ParityTrial, origin: Provenance
) -> _WrittenExport:
    """The export in `folder`, with its report, card and manifest; marked where the gate closes.

    Raises RecipeError for a checkpoint that the format does not take.
    """
    refusal = exporter.refusal(source)
    if refusal is not None:
        raise RecipeError(f"format {name_of(exporter)}: {refusal}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts = dict(exporter.write(source, folder))
    parity = _parity(source, folder, exporter, trial)
    refusals = parity.refusals()
    report = {
        "format": name_of(exporter),
        "exporter": describe(exporter),
        "facts": facts,
        "parity": parity.facts(),
        "refused": refusals,
        "versions": versions(),
    }
    write_json(folder / REPORT_FILE, report)
    if refusals:
        write_json(folder / FAILED_FILE, {"refused": refusals, "shown": parity.shown})
    card = read_card(folder if (folder / "lcc_card.json").is_file() else source)
    text = model_card(card, origin, format=name_of(exporter), facts=facts, parity=parity)
    write_model_card(folder, text)
    _seal(folder, {"source": _source_digest(source), "exporter": describe(exporter)})
    return _WrittenExport(facts, parity, refusals)


def closed(exporter: Any, parity: Parity, refusals: Sequence[str], kept: Path) -> str:
    """The sentences when the gate closes: why, where the export is, and both outputs."""
    lines = [
        f"format {name_of(exporter)}: the export is not its source: {' '.join(refusals)}",
        f"It is kept in {kept}, marked as failed, and no engine runs it.",
    ]
    for pair in parity.shown[:1]:
        for word in ("prompt", "source", "export"):
            lines.append(f"  {word}: {pair[word]!r}")
    return "\n".join(lines)


def _parity(source: Path, folder: Path, exporter: Any, trial: ParityTrial) -> Parity:
    if exporter.engine == "":
        return _same_bytes(source, folder)
    opening = Opening(threads=trial.threads, slots=8, context=LONGEST_PROMPT + trial.new_tokens)
    engine = card_named("engines", exporter.engine)()
    stopped = engine.rehearse(folder) if hasattr(engine, "rehearse") else None
    if stopped is not None:
        return Parity("tokens", exporter.tolerance, stopped=stopped)
    if read_card(source).head == "transcribe":
        return _heard(source, folder, exporter, opening, trial.new_tokens)
    mine: Session = card_named("engines", "transformers")().open(source, opening)
    try:
        try:
            other: Session = engine.open(folder, opening)
        except GateError as error:
            return Parity("tokens", exporter.tolerance, stopped=str(error))
        try:
            room = min(LONGEST_PROMPT, min(mine.context, other.context) - trial.new_tokens)
            prompts = trial.prompts or encoded(mine.tokenizer, longest=room)
            asked = [row[-room:] for row in prompts]
            rehearsed = rehearsed_error(exporter, source, mine, asked, trial.new_tokens)
            parity = compare(
                mine, other, asked, tolerance=tolerance(exporter, rehearsed), new_tokens=trial.new_tokens
            )
            parity.rehearsed_error = rehearsed
            return parity
        finally:
            other.close()
    finally:
        mine.close()


def _heard(source: Path, folder: Path, exporter: Any, opening: Opening, new_tokens: int) -> Parity:
    tokenizer = open_bundle(source).tokenizer
    prompt = transcript_prompt(tokenizer, read_json(source / "config.json")["vocab_size"])
    try:
        other = card_named("engines", exporter.engine)().listen(folder, opening)
    except GateError as error:
        return Parity("tokens", exporter.tolerance, stopped=str(error))
    try:
        mine = card_named("engines", "transformers")().listen(source, opening)
        sounds = list(features(source))
        options: dict[str, Any] = {"new_tokens": new_tokens, "tokenizer": tokenizer}
        rehearsed = rehearsed_hearing(exporter, source, mine, sounds, prompt, **options)
        allowed = tolerance(exporter, rehearsed)
        parity = compare_heard(mine, other, sounds, prompt, tolerance=allowed, **options)
        parity.rehearsed_error = rehearsed
        return parity
    finally:
        other.close()


def _same_bytes(source: Path, folder: Path) -> Parity:
    """For a format that is a copy: every file is the source's."""
    names = artifact.file_names(source)
    mine, other = artifact.digests(source, names), artifact.digests(folder, names)
    share = sum(mine[name] == other[name] for name in names) / len(names)
    return Parity(
        "bytes", tolerance=0.0, num_prompts=len(names), agreement=share, unexplained_share=1 - share
    )


def _source_digest(source: Path) -> str:
    names = [file.name for file in weight_files(source)] + ["config.json"]
    return digest(artifact.digests(source, names))


def _seal(folder: Path, ingredients: Mapping[str, Any]) -> None:
    """Readable by everybody, with every file's digest in the manifest."""
    names = [name for name in artifact.file_names(folder) if name != artifact.MANIFEST]
    for name in names:
        (folder / name).chmod(0o644)
    artifact.write(folder, digest(ingredients), files=artifact.digests(folder, names))
