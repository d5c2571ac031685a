"""Select the inference engine that runs a model here, and convert the model to its format once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.config.cards import digest, find_card, identify, names
from lcc.core.errors import GateError, LccError, RecipeError
from lcc.core.machine import version_of
from lcc.inference.session import Opening, Request, Session, named, opened
from lcc.models.card import read_card, weight_files
from lcc.store import artifact
from lcc.store.artifact import Artifact

if TYPE_CHECKING:
    from lcc.store.store import Store

OURS = "transformers"
PROMPT_TOKENS, NEW_TOKENS = 24, 16
SECONDS = 2.0  # of one engine's measurement, at least one round
EVERY = 8  # of the fixed texts, so many apart are compared on
MADE = "model"  # the folder of an artifact that an engine reads


@dataclass(frozen=True)
class Selected:
    """An engine, its card's options, and the folder it is to open; `seen` are the figures that
    chose it, if any did."""

    engine: str
    folder: Path
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    seen: dict[str, float] = dataclasses.field(default_factory=dict)

    def open(self, opening: Opening) -> Session:
        """The model in memory."""
        return opened(self.engine, self.options, self.folder, opening)


def select(
    word: str | dict[str, Any],
    folder: Path,
    opening: Opening,
    *,
    store: Store,
    info: Callable[[str], None],
    rows: int = 1,
) -> Selected:
    """The engine that `word` names; for `auto` the fastest here at `rows` answers at once.

    `{name: …, option: …}` sets options of its card.

    Raises RecipeError where the engine refuses the model, GateError where its copy differs.
    """
    if word != "auto":
        name, options = named(word)
        refusal = find_card("engines", name)().refusal(folder)
        if refusal is not None:
            raise RecipeError(f"engine {name}: {refusal}")
        return Selected(name, prepared(name, folder, store, info, threads=opening.threads), options)
    fit, refusals = _fitting(folder)
    if fit == [OURS]:
        info(f"engine=auto: {OURS}, as no other can: {' '.join(refusals)}")
        return Selected(OURS, folder)
    seen: dict[str, float] = {}
    info(f"engine=auto: measuring {', '.join(fit)}")
    folders: dict[str, Path] = {}
    for name in fit:
        try:
            folders[name] = prepared(name, folder, store, info, threads=opening.threads)
            seen[name] = _speed(Selected(name, folders[name]), opening, rows)
        except LccError as error:
            info(f"engine=auto: {name} is left out: {error}")
    best = max(seen, key=lambda name: seen[name])
    unit = "tokens" if read_card(folder).head in ("causal", "seq2seq") else "rows"
    figures = ", ".join(f"{name} {seen[name]:,.0f}" for name in sorted(seen, key=lambda n: -seen[n]))
    info(f"engine=auto: {best}; {unit} a second here, {rows} at once: {figures}.")
    return Selected(best, folders[best], seen=seen)


def _fitting(folder: Path) -> tuple[list[str], list[str]]:
    """Engines that can run the checkpoint, ours first, and the sentences of those that cannot."""
    fit, refusals = [], []
    for name in sorted(names("engines"), key=lambda name: name != OURS):
        refusal = find_card("engines", name)().refusal(folder)
        if refusal is None:
            fit.append(name)
        else:
            refusals.append(refusal)
    return fit, refusals


def prepared(
    engine: str, folder: Path, store: Store, info: Callable[[str], None], *, threads: int = 1
) -> Path:
    """The checkpoint in the engine's format: as it lies, or an artifact that is made once.

    A copy passes the parity gate, on fewer prompts than `lcc export` takes.
    """
    wanted = find_card("engines", engine).format
    if wanted == "hf" or _is_written(folder, wanted):
        return folder
    exporter = find_card("exporters", wanted)()
    refusal = exporter.refusal(folder)
    if refusal is not None:
        raise RecipeError(f"engine {engine}: {refusal}")
    package = find_card("engines", engine).package
    made_of = {
        "exporter": identify(exporter),
        "source": source_digest(folder),
        "version": version_of(package),
    }
    key = digest(made_of)
    artifact = store.find(key)
    if artifact is not None:
        return artifact.path / MADE
    info(f"writing {read_card(folder).name} as {wanted} for {engine}; kept in {store.root}")
    with store.claim(key, label=f"{wanted} of {folder.name}") as work:
        if isinstance(work, Artifact):
            return work.path / MADE
        facts = _write(folder, work.path / MADE, exporter, threads)
        step = {"name": wanted, "kind": "engine"}
        report = {"step": step, "ingredients": made_of, "facts": facts}
        return store.publish(work, report=report).path / MADE


def _write(folder: Path, target: Path, exporter: Any, threads: int) -> dict[str, Any]:
    """Write the copy, and compare it with its source on some prompts; raises GateError."""
    from lcc.export.model_card import Provenance
    from lcc.export.parity import texts
    from lcc.export.publish import LONGEST_PROMPT, ParityTrial, closed, write_and_compare
    from lcc.models.bundle import open_bundle

    tokenizer = open_bundle(folder).tokenizer
    rows = [list(tokenizer(text)["input_ids"])[:LONGEST_PROMPT] for text in texts()[::EVERY]]
    trial = ParityTrial(prompts=[row for row in rows if row], threads=threads)
    made = write_and_compare(folder, target, exporter, trial=trial, origin=Provenance())
    if made.refusals:
        raise GateError(closed(exporter, made.parity, made.refusals, target))
    return {"written": made.facts, "parity": made.parity.facts()}


def _is_written(folder: Path, wanted: str) -> bool:
    """Whether the folder is itself an export in this format, as its report says."""
    report = folder / "export.json"
    if not report.is_file():
        return False
    from lcc.models.card import read_json

    return bool(read_json(report).get("format") == wanted)


def source_digest(folder: Path) -> str:
    """Of the bytes that a copy is made from: weights, config, tokenizer."""
    names = [file.name for file in weight_files(folder)]
    names += [file.name for file in sorted(folder.glob("*.json"))]
    return digest(artifact.digests(folder, sorted(set(names))))


def _speed(selected: Selected, opening: Opening, rows: int) -> float:
    """Tokens (or rows read) a second, best of the rounds that fit into the time."""
    session = selected.open(dataclasses.replace(opening, slots=max(1, rows)))
    try:
        size = len(session.tokenizer)
        prompts = [
            [(7 * i + 11 * row) % (size - 10) + 5 for i in range(PROMPT_TOKENS)] for row in range(rows)
        ]
        work = _writing if session.card.head in ("causal", "seq2seq") else _reading
        work(session, prompts)  # what is made or fetched at first use is no part of it
        best, until = 0.0, time.perf_counter() + SECONDS
        while best == 0.0 or time.perf_counter() < until:
            started = time.perf_counter()
            best = max(best, work(session, prompts) / (time.perf_counter() - started))
        return best
    finally:
        session.close()


def _writing(session: Session, prompts: Sequence[Sequence[int]]) -> int:
    num, waiting = 0, list(prompts)
    running: set[int] = set()
    while waiting or running:
        while waiting and session.free_slots > 0:
            running.add(session.start(Request(tuple(waiting.pop()), NEW_TOKENS)))
        for step in session.step():
            num += max(1, len(step.tokens))
            if step.finish is not None:
                running.discard(step.handle)
    return num


def _reading(session: Session, prompts: Sequence[Sequence[int]]) -> int:
    if "logits" in session.abilities:
        return len(session.logits(prompts))
    return len(session.embed(prompts))
