"""Prune the vocabulary to the tokens that training and further corpora use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core import signals
from lcc.core.errors import DataError, GateError, RecipeError
from lcc.core.lazy import torch
from lcc.core.progress import Measure
from lcc.data.local_files import text_fields
from lcc.pipeline.stage import Outcome
from lcc.tokenization.prune_vocabulary import Cut, coverage, cut, keep_rows, named_ids, num_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun
    from lcc.tasks.task import Task

NUM_PROBES, PROBE_LENGTH = 4, 64
TOLERANCE = 1e-4  # relative; a narrower matrix product may round otherwise in the last bits
CHUNK = 1000  # texts that are encoded between two looks at whether to stop
HELD_OUT_LINES = 20  # every so many-th line of a corpus only measures what the others kept


@card
class Vocab:
    """Cut the vocabulary to the training split's tokens, closed under the tokenizer's merges.

    `corpora` are text files by language, a line a text, whose tokens are kept where they occur
    `min_count` times, so that the model goes on understanding more than the task's own texts.
    """

    reads: ClassVar[tuple[Noun, ...]] = ("task", "data")
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "vocab"
    revision: ClassVar[int] = 1

    corpora: dict[str, str] = field(default_factory=dict)
    min_count: Annotated[int, Field(ge=1)] = 1

    def files(self) -> dict[str, Path]:
        """The corpora by language, whose content enters the key; RecipeError for one not there."""
        paths = {language: Path(given).expanduser() for language, given in self.corpora.items()}
        for language, path in paths.items():
            if not path.is_file():
                raise RecipeError(f"vocab.corpora.{language}: no file {str(path)!r} is here.")
        return paths

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        task = context.required_task.for_data(context.data)
        model, tokenizer = bundle.load(), bundle.tokenizer
        rows = context.data.rows("train")
        if not rows:
            raise DataError("vocab: the training split is empty; there is nothing to keep.")
        texts = _texts(rows, task)
        pieces = _pieces(texts, rows, tokenizer, task=task)
        corpora = {name: _lines(path) for name, path in self.files().items()}
        used = {i for ids in pieces for i in ids} | self._used(corpora, tokenizer)
        smaller = cut(tokenizer, used, named=named_ids(model))
        again = _pieces(texts, rows, smaller.tokenizer, task=task)
        _require_same_pieces(pieces, again, smaller, old=tokenizer)
        table = [
            {"text": name, **coverage(texts, tokenizer, smaller)}
            for name, texts in _held_out(context, corpora).items()
            if texts
        ]
        before, probes = _Size(model), pieces[:NUM_PROBES]
        expected = _logits(model, probes)
        keep_rows(model, smaller.old_ids, smaller.new_ids)
        difference = _difference(expected, model, probes, smaller=smaller)
        bundle.module, bundle.tokenizer = model, smaller.tokenizer
        after = _Size(model)
        return Outcome(
            bundle=bundle,
            measures={
                "num_tokens_before": Measure(before.rows, "count"),
                "num_tokens": Measure(after.rows, "count"),
                "num_parameters_before": Measure(before.parameters, "count"),
                "num_parameters": Measure(after.parameters, "count"),
                "max_logit_difference": Measure(difference),
                **_held_out_measures(table),
            },
            tables={"coverage": table},
            notes=_notes(before, after),
        )

    def _used(self, corpora: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Tokens that the corpora use often enough, their held-out lines apart."""
        counts: Counter[int] = Counter()
        for lines in corpora.values():
            shown = [line for i, line in enumerate(lines) if i % HELD_OUT_LINES]
            for ids in _encoded(shown, tokenizer):
                counts.update(ids)
        return {token for token, count in counts.items() if count >= self.min_count}


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"vocab.corpora: {path} is not UTF-8 text; convert it.") from None
    return [line for line in text.splitlines() if line.strip()]


class _Size:
    def __init__(self, model: PreTrainedModel) -> None:
        self.rows = num_rows(model)
        self.parameters = sum(p.numel() for p in model.parameters())


def _notes(before: _Size, after: _Size) -> list[str]:
    if after.rows == before.rows:
        return ["Every token is needed by the training split; the vocabulary stays as it was."]
    return ["Across vocabularies compare bits per byte, never perplexity per token."]


def _texts(rows: list[dict[str, Any]], task: Task) -> list[str]:
    """Each row as it is trained on and as it is prompted, and one prompt with shots."""
    whole = [task.text(row) for row in rows]
    prompts = [task.prompt(row) for row in rows]
    # Always two: how many an evaluation shows must not change the vocabulary.
    return [*whole, *prompts, task.prompt(rows[0], rows[1:3])]


def _pieces(
    texts: list[str], rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, task: Task
) -> list[list[int]]:
    """Every text, and every row as training encodes it: its completion stands apart."""
    pieces = list(_encoded(texts, tokenizer))
    for row in rows:
        signals.check("vocab")
        example = task.encode(row, tokenizer, max_length=1 << 20)
        pieces.append(list(example.input_ids))
        if isinstance(example.labels, list):
            pieces.append([label for label in example.labels if label >= 0])
    return pieces


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for start in range(0, len(texts), CHUNK):
        signals.check("vocab")
        yield from tokenizer(texts[start : start + CHUNK])["input_ids"]


def _require_same_pieces(
    before: list[list[int]], after: list[list[int]], smaller: Cut, *, old: PreTrainedTokenizerBase
) -> None:
    for was, now in zip(before, after, strict=True):
        if [smaller.old_ids[i] for i in now] != was:
            raise GateError(
                f"vocab: the cut tokenizer splits {old.decode(was)[:80]!r} otherwise;"
                " this tokenizer cannot be cut, leave the step out."
            )


def _held_out(context: Context, corpora: dict[str, list[str]]) -> dict[str, list[str]]:
    """Texts that decided nothing: the validation split, its fields alone, and lines of corpora."""
    rows = context.data.rows("validation")
    texts = {"validation": [context.required_task.text(row) for row in rows]}
    names = text_fields(rows[0]) if rows else []
    for name in names if len(names) > 1 else []:
        texts[f"validation: {name}"] = [str(row[name]) for row in rows]
    held_out = {f"corpus: {name}": lines[::HELD_OUT_LINES] for name, lines in corpora.items()}
    return {**texts, **held_out}


def _held_out_measures(table: list[dict[str, Any]]) -> dict[str, Measure]:
    first = next((row for row in table if row["text"] == "validation"), None)
    if first is None:
        return {}
    return {
        "held_out_kept_share": Measure(first["kept_share"], "share"),
        "held_out_fallbacks": Measure(first["fallbacks"], "per 1,000 words"),
        "held_out_extra_pieces": Measure(first["extra_pieces"], "per 1,000 words"),
    }


def _logits(model: Any, probes: list[list[int]]) -> list[Tensor]:
    """What the model says about each probe, on CPU; the hidden state where it has no head."""
    model.eval()
    logits = []
    length = min(PROBE_LENGTH, getattr(model.config, "max_position_embeddings", PROBE_LENGTH))
    with torch.no_grad():
        for ids in probes:
            tokens = torch.tensor([ids[:length]], device=model.device)
            decoder = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
            output = model(input_ids=tokens, **decoder)
            logits.append(output.get("logits", output[0]).float().cpu())
    return logits


def _difference(
    expected: list[Tensor], model: PreTrainedModel, probes: list[list[int]], *, smaller: Cut
) -> float:
    """Largest change of a logit of a kept token; GateError when it is more than rounding."""
    renumbered = [[smaller.new_ids[i] for i in ids] for ids in probes]
    worst = 0.0
    for old, new in zip(expected, _logits(model, renumbered), strict=True):
        if old.shape != new.shape:
            old = old[..., [i for i in smaller.old_ids if i < old.shape[-1]]]
            new = new[..., : old.shape[-1]]
        gap = float((old - new).abs().max())
        if not gap <= TOLERANCE * float(old.abs().max() + 1):
            raise GateError(f"vocab: logits of kept tokens moved by {gap:.3g}; nothing was kept.")
        worst = max(worst, gap)
    return worst
