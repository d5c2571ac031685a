"""Sidecar files beside an export: card, tokenizer and generation settings that its engine needs."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lcc.core.disk import write_json
from lcc.core.errors import GateError, IntegrityError
from lcc.core.lazy import transformers
from lcc.evaluation.generate import demanded_settings, eos_ids
from lcc.evaluation.score import context_length
from lcc.models.card import TOKENIZER_FILES, Card, class_names, read_card, read_json, write_card

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_FILE = "lcc_model.json"
SETTINGS_FILE = "generation_config.json"
FAILED_FILE = "FAILED.json"  # lies in an export that its parity gate refused


@dataclass
class Sidecar:
    """Read from an export's folder.

    `ends` are the tokens that end an answer, `start` opens an encoder–decoder's; `settings` are
    what the architecture demands of decoding; `labels` are a classifier's, in order.
    """

    card: Card
    tokenizer: PreTrainedTokenizerBase
    settings: Any
    ends: frozenset[int]
    start: int | None
    context: int
    labels: tuple[str, ...]


def write_sidecar(source: Path, target: Path, *, longest: int | None = None, **changes: Any) -> None:
    """Lay them beside what an exporter wrote of the checkpoint in `source`.

    `changes` are fields of the card, the format among them; `longest` is the longest text in
    tokens that the format takes, where that is less than the model does.
    """
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
    write_card(dataclasses.replace(read_card(source), **changes), target)
    shell = _shell(source)
    head = read_card(source).head
    if head in ("causal", "seq2seq"):
        settings = demanded_settings(shell)
        settings.eos_token_id = eos_ids(shell, _tokenizer(source)) or None
        text = settings.to_json_string(use_diff=True)
        (target / SETTINGS_FILE).write_text(text, encoding="utf-8")
    facts = {
        "context_length": min(context_length(shell), longest or context_length(shell)),
        "labels": class_names(shell.config.to_dict()) if head == "classify" else [],
    }
    write_json(target / MODEL_FILE, facts)


def read_sidecar(folder: Path) -> Sidecar:
    """Those of an export; raises GateError for one that failed its gate."""
    require_passed(folder)
    if not (folder / MODEL_FILE).is_file():
        raise IntegrityError(
            f"{folder}: no {MODEL_FILE}, so it is no export of lcc's; make one with lcc export."
        )
    card, facts = read_card(folder), read_json(folder / MODEL_FILE)
    fresh: Any = transformers.GenerationConfig
    settings, ends, start = fresh(), [], None
    if (folder / SETTINGS_FILE).is_file():
        settings = transformers.GenerationConfig.from_pretrained(folder)
        end_ids = settings.eos_token_id
        ends = end_ids if isinstance(end_ids, list) else [end_ids] if end_ids is not None else []
    if card.head == "seq2seq":
        start = settings.decoder_start_token_id
    return Sidecar(
        card,
        _tokenizer(folder),
        settings,
        frozenset(ends),
        start,
        int(facts["context_length"]),
        tuple(facts["labels"]),
    )


def require_passed(folder: Path) -> None:
    """Raise GateError where the parity gate refused what lies in `folder`."""
    if (folder / FAILED_FILE).is_file():
        raise GateError(
            f"{folder}: this export failed its parity gate ({FAILED_FILE} says how far "
            "it is from its source), so it is not run; export again."
        )


def _shell(source: Path) -> Any:
    """Config and generation settings of a checkpoint, without its weights."""
    config = transformers.AutoConfig.from_pretrained(source)
    if (source / SETTINGS_FILE).is_file():
        settings = transformers.GenerationConfig.from_pretrained(source)
    else:
        settings = transformers.GenerationConfig.from_model_config(config)
    return SimpleNamespace(config=config, generation_config=settings)


def _tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


GGUF_FILE = "model.gguf"
