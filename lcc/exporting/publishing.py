"""An export as an artifact: written, proved against its source, described, and put in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core import manifest
from lcc.core.catalog import card as card_named
from lcc.core.catalog import name_of
from lcc.core.describe import describe, digest
from lcc.core.errors import GateError, RecipeError
from lcc.core.machine import versions
from lcc.exporting.explaining import rehearsed_error, rehearsed_hearing, tolerance
from lcc.exporting.hearing import compare_heard
from lcc.exporting.model_card import model_card, write_model_card
from lcc.exporting.parity import NEW_TOKENS, Parity, compare
from lcc.exporting.prompts import encoded
from lcc.exporting.provenance import Provenance
from lcc.exporting.sounds import features, transcript_prompt
from lcc.inference.companions import FAILED_FILE
from lcc.inference.sessions import Opening
from lcc.parts.checkpoint import read_card
from lcc.parts.folder import read_json, weight_files
from lcc.parts.model import open_bundle

if TYPE_CHECKING:
    from lcc.inference.sessions import Session

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
class Trial:
    """What an export is compared on: `prompts` of the task, or None for the fixed ones."""

    prompts: Sequence[Sequence[int]] | None = None
    new_tokens: int = NEW_TOKENS
    threads: int = 1


@dataclass
class _Made:
    facts: dict[str, Any]
    parity: Parity
    refusals: list[str] = field(default_factory=list)


def publish(
    source: Path, target: Path, exporter: Any, *, trial: Trial, origin: Provenance | None = None
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
    source: Path, folder: Path, exporter: Any, *, trial: Trial, origin: Provenance
) -> _Made:
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
    report = {"format": name_of(exporter), "exporter": describe(exporter), "facts": facts,
              "parity": parity.facts(), "refused": refusals, "versions": versions()}  # fmt: skip
    _write_json(folder / REPORT_FILE, report)
    if refusals:
        _write_json(folder / FAILED_FILE, {"refused": refusals, "shown": parity.shown})
    card = read_card(folder if (folder / "lcc_card.json").is_file() else source)
    text = model_card(card, origin, format=name_of(exporter), facts=facts, parity=parity)
    write_model_card(folder, text)
    _seal(folder, {"source": _source_digest(source), "exporter": describe(exporter)})
    return _Made(facts, parity, refusals)


def closed(exporter: Any, parity: Parity, refusals: Sequence[str], kept: Path) -> str:
    """What is said when the gate closes: why, where the export is, and both outputs."""
    lines = [f"format {name_of(exporter)}: the export is not its source: {' '.join(refusals)}",
             f"It is kept in {kept}, marked as failed, and no engine runs it."]  # fmt: skip
    for pair in parity.shown[:1]:
        for word in ("prompt", "source", "export"):
            lines.append(f"  {word}: {pair[word]!r}")
    return "\n".join(lines)


def folder_bytes(folder: Path) -> int:
    """What all files take."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _parity(source: Path, folder: Path, exporter: Any, trial: Trial) -> Parity:
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
            found = compare(mine, other, asked, tolerance=tolerance(exporter, rehearsed),
                            new_tokens=trial.new_tokens)  # fmt: skip
            found.rehearsed_error = rehearsed
            return found
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
        told: dict[str, Any] = {"new_tokens": new_tokens, "tokenizer": tokenizer}
        rehearsed = rehearsed_hearing(exporter, source, mine, sounds, prompt, **told)
        allowed = tolerance(exporter, rehearsed)
        found = compare_heard(mine, other, sounds, prompt, tolerance=allowed, **told)
        found.rehearsed_error = rehearsed
        return found
    finally:
        other.close()


def _same_bytes(source: Path, folder: Path) -> Parity:
    """For a format that is a copy: every file is the source's."""
    names = manifest.file_names(source)
    mine, other = manifest.digests(source, names), manifest.digests(folder, names)
    share = sum(mine[name] == other[name] for name in names) / len(names)
    return Parity("bytes", tolerance=0.0, num_prompts=len(names), agreement=share,
                  unexplained_share=1 - share)  # fmt: skip


def _source_digest(source: Path) -> str:
    names = [file.name for file in weight_files(source)] + ["config.json"]
    return digest(manifest.digests(source, names))


def _seal(folder: Path, ingredients: Mapping[str, Any]) -> None:
    """Readable by everybody, with every file's digest in the manifest."""
    names = [name for name in manifest.file_names(folder) if name != manifest.MANIFEST]
    for name in names:
        (folder / name).chmod(0o644)
    manifest.write(folder, digest(ingredients), files=manifest.digests(folder, names))


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
