"""Vocabulary pruning: cut a tokenizer to the tokens a corpus uses, which keeps its pieces exactly.

BPE builds a token bottom-up, so a kept token needs every part that its own derivation passes
through; merges among kept tokens stay in their order, which makes every run over a text whose
tokens are all kept take the same steps as before. WordPiece and WordLevel need no closure.
"""

from __future__ import annotations

import copy
import json
import re
import string
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError
from lcc.core.lazy import torch, transformers
from lcc.tokenization.train import CONTINUES

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pair = tuple[str, str]
MODELS = ("BPE", "WordPiece", "WordLevel")
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+", re.UNICODE)


@dataclass(frozen=True)
class Cut:
    """A smaller tokenizer and where its tokens come from."""

    tokenizer: PreTrainedTokenizerBase
    old_ids: list[int]  # old_ids[new id] = old id

    @cached_property
    def new_ids(self) -> dict[int, int]:
        """new_ids[old id] = new id, for what was kept."""
        return {old: new for new, old in enumerate(self.old_ids)}


def coverage(texts: list[str], tokenizer: PreTrainedTokenizerBase, smaller: Cut) -> dict[str, int | float]:
    """How texts that decided nothing fare with the smaller vocabulary.

    `kept_share` of their tokens is still there; the others are fall-backs, spelled with
    `extra_pieces` more tokens; both are counted per 1,000 words (a Chinese character is a word).
    """
    old, new = tokenizer(texts)["input_ids"], smaller.tokenizer(texts)["input_ids"]
    num_old = max(1, sum(map(len, old)))
    num_kept = sum(i in smaller.new_ids for ids in old for i in ids)
    num_words = max(1, sum(len(WORD.findall(text)) for text in texts))
    return {
        "num_words": num_words,
        "kept_share": num_kept / num_old,
        "fallbacks": 1000 * (num_old - num_kept) / num_words,
        "extra_pieces": 1000 * (sum(map(len, new)) - num_old) / num_words,
    }


def cut(tokenizer: PreTrainedTokenizerBase, used: Iterable[int], *, named: Iterable[int] = ()) -> Cut:
    """The tokenizer with only the `used` ids, what building them needs, specials and characters.

    `named` are ids that a config names (padding, decoder start …). Raises DataError for a
    tokenizer whose model is none of BPE, WordPiece and WordLevel.
    """
    document = _document(tokenizer)
    kept = _tokens_of(document, {*used, *named, *_special_ids(tokenizer, document)})
    kept |= _characters(document)
    if document["model"]["type"] == "BPE":
        added = {entry["content"] for entry in document["added_tokens"]}
        kept |= _derivations(document["model"], kept - added)
    old_ids = _restrict(document, kept)
    return Cut(_rebuilt(tokenizer, document), old_ids)


def _document(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"vocab: {type(tokenizer).__name__} has no tokenizer.json; leave the step out.")
    document: dict[str, Any] = json.loads(backend.to_str())
    kind = document["model"]["type"]
    if kind not in MODELS:
        raise DataError(
            f"vocab: a {kind} tokenizer cannot be cut without changing how the kept texts are"
            f" split; leave the step out (works for {', '.join(MODELS)})."
        )
    merges = document["model"].get("merges", [])
    if merges and isinstance(merges[0], str):
        document["model"]["merges"] = [merge.split(" ") for merge in merges]
    return document


def _special_ids(tokenizer: PreTrainedTokenizerBase, document: dict[str, Any]) -> set[int]:
    """Special tokens by name, and added tokens that the post-processor or chat template writes."""
    template = tokenizer.chat_template or ""
    written = json.dumps(document["post_processor"]) + (
        template if isinstance(template, str) else json.dumps(template)
    )
    ids = {entry["id"] for entry in document["added_tokens"] if entry["content"] in written}
    unknown = document["model"].get("unk_token")
    if unknown is not None:
        ids.add(document["model"]["vocab"][unknown])
    return ids | set(tokenizer.all_special_ids)


def _all_ids(document: dict[str, Any]) -> dict[str, int]:
    added = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    return {**document["model"]["vocab"], **added}


def _tokens_of(document: dict[str, Any], ids: set[int]) -> set[str]:
    return {token for token, number in _all_ids(document).items() if number in ids}


def _characters(document: dict[str, Any]) -> set[str]:
    """What spells any text: byte pieces, the byte-level alphabet, ASCII and its continuations."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary: Mapping[str, int] = document["model"]["vocab"]
    prefix = document["model"].get("continuing_subword_prefix") or ""
    characters = {*string.digits, *string.ascii_letters, *string.punctuation, "\n", "\t", " ", "▁"}
    wanted = {*characters, *(prefix + character for character in characters)}
    wanted |= {f"<0x{byte:02X}>" for byte in range(256)}
    if "ByteLevel" in json.dumps([document["pre_tokenizer"], document["decoder"]]):
        wanted |= set(ByteLevel.alphabet())
    return {token for token in wanted if token in vocabulary}


def _derivations(model: dict[str, Any], tokens: set[str]) -> set[str]:
    """Every part that BPE passes through on its way to one of `tokens`."""
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    parts: set[str] = set()
    for token in tokens:
        parts |= _derivation(token, ranks, model)
    return {part for part in parts if part in model["vocab"]}


def _derivation(token: str, ranks: Mapping[Pair, int], model: dict[str, Any]) -> set[str]:
    prefix, suffix = (model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or "")
    body = token.removesuffix(suffix) if suffix else token
    pieces = [c if i == 0 else prefix + c for i, c in enumerate(body.removeprefix(prefix))]
    if prefix and token.startswith(prefix) and pieces:
        pieces[0] = prefix + pieces[0]
    if suffix and token.endswith(suffix) and pieces:
        pieces[-1] += suffix
    passed = set(pieces)
    while len(pieces) > 1:
        pairs = pairwise(pieces)
        best = min(((ranks[p], i) for i, p in enumerate(pairs) if p in ranks), default=None)
        if best is None:
            break
        left, right = pieces[best[1]], pieces[best[1] + 1]
        pieces[best[1] : best[1] + 2] = [left + right.removeprefix(prefix)]
        passed.add(pieces[best[1]])
    return passed


def _restrict(document: dict[str, Any], kept: set[str]) -> list[int]:
    """Cut `document` in place to `kept` and number anew; returns the old id of every new one."""
    model, old = document["model"], _all_ids(document)
    own = sorted((t for t in kept if t in model["vocab"]), key=model["vocab"].__getitem__)
    # Tokens that only the added list knows are numbered after the model's own: so does the library.
    extra = sorted((t for t in kept if t not in model["vocab"]), key=old.__getitem__)
    new = {token: number for number, token in enumerate([*own, *extra])}
    model["vocab"] = {token: new[token] for token in own}
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left in new and right in new and left + right.removeprefix(prefix) in new
        ]
    document["added_tokens"] = sorted(
        (
            {**entry, "id": new[entry["content"]]}
            for entry in document["added_tokens"]
            if entry["content"] in new
        ),
        key=lambda entry: int(entry["id"]),
    )
    _renumber(document["post_processor"], new)
    if document["padding"]:
        document["padding"]["pad_id"] = new[document["padding"]["pad_token"]]
    return [old[token] for token in new]


def _renumber(node: Any, new: Mapping[str, int]) -> None:
    """Ids inside a post-processor, in place: templates name tokens, BERT's carry (token, id)."""
    if isinstance(node, list):
        for item in node:
            _renumber(item, new)
    if not isinstance(node, dict):
        return
    if "ids" in node and "tokens" in node:
        node["ids"] = [new[token] for token in node["tokens"]]
    for key in ("sep", "cls"):
        if isinstance(node.get(key), list):
            node[key] = [node[key][0], new[node[key][0]]]
    for value in node.values():
        _renumber(value, new)


def _rebuilt(tokenizer: PreTrainedTokenizerBase, document: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer as a stranger will load it: saved, cut on disk, opened again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for leftover in ("vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"):
            (folder / leftover).unlink(missing_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        settings_file = folder / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # Old numbers; tokenizer.json has the new ones.
        settings_file.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        rebuilt: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(folder)
    rebuilt.name_or_path = tokenizer.name_or_path
    return rebuilt


# Keep some rows of a model's vocabulary: embeddings, head, biases, config ids, all consistent.

SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")


def num_rows(model: PreTrainedModel) -> int:
    """Rows of the input embedding (often more than the tokenizer's tokens)."""
    return int(_weight(model).shape[0])


def _weight(model: PreTrainedModel) -> Tensor:
    weight: Tensor = model.get_input_embeddings().get_parameter("weight")
    return weight


def named_ids(model: PreTrainedModel) -> set[int]:
    """Every token id that the model's config or generation config names."""
    ids: set[int] = set()
    for config in _configs(model):
        for _, value in _id_fields(config):
            ids.update(value if isinstance(value, list) else [value])
    return {i for i in ids if 0 <= i < num_rows(model)}


def keep_rows(model: PreTrainedModel, old_ids: list[int], new_ids: Mapping[int, int]) -> None:
    """Shrink the vocabulary to `old_ids`, in this order, in place.

    A token without a row of its own (some tokenizers know more than their model) gets zeros.
    """
    rows, kept = num_rows(model), torch.tensor(old_ids)
    assert len(old_ids) <= rows, (len(old_ids), rows)
    with torch.no_grad():
        for tensor in _vocabulary_tensors(model, rows):
            chosen = tensor.data[kept.clamp(max=rows - 1)]
            chosen[kept >= rows] = 0
            tensor.data[: len(old_ids)] = chosen
    padding_idx = {m: m.padding_idx for m in _embeddings(model)}
    # transformers knows each family's ties, biases and config fields; only the order was ours.
    model.resize_token_embeddings(len(old_ids), mean_resizing=False)
    for module, old in padding_idx.items():
        module.padding_idx = None if old is None else new_ids.get(old)
    for config in _configs(model):
        for name, value in _id_fields(config):
            setattr(config, name, _renumbered(name, value, new_ids))


def _embeddings(model: PreTrainedModel) -> list[Any]:
    """Embedding modules over the vocabulary (an encoder–decoder may hold several on one weight)."""
    weight = _weight(model)
    return [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.weight is weight
    ]


def _vocabulary_tensors(model: PreTrainedModel, rows: int) -> Iterable[Tensor]:
    """Distinct tensors, seen with the vocabulary as their first axis: embeddings, head, biases."""
    holders: list[Any] = [model.get_input_embeddings(), _head(model)]
    tensors = [getattr(holder, name, None) for holder in holders for name in ("weight", "bias")]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("logits_bias", "predictions.bias")):
            tensors.append(tensor.view(-1))  # Marian and BART keep theirs as (1, vocabulary).
    distinct = {t.data_ptr(): t for t in tensors if t is not None and t.shape[0] == rows}
    return distinct.values()


def _head(model: Any) -> Module | None:
    head: Module | None = model.get_output_embeddings()
    return head


def _configs(model: PreTrainedModel) -> list[Any]:
    configs = [model.config, model.config.get_text_config(), model.config.get_text_config(True)]
    generation = getattr(model, "generation_config", None)
    unique = {id(c): c for c in [*configs, generation] if c is not None}
    return list(unique.values())


def _id_fields(config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(config.to_dict().items()):
        is_id = name.endswith(("token_id", "token_ids")) or name in SUPPRESSED
        is_numbers = isinstance(value, int) or (
            isinstance(value, list) and all(isinstance(item, int) for item in value)
        )
        if is_id and is_numbers and not isinstance(value, bool):
            yield name, value


def _renumbered(name: str, value: Any, new_ids: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        kept = [new_ids[item] for item in value if item in new_ids]
        return kept or None
    return new_ids.get(value)


def with_new_vocabulary(
    model: PreTrainedModel, size: int, special_ids: Mapping[str, int], *, seed: int
) -> PreTrainedModel:
    """`model` with `size` tokens that it has never seen: their rows are drawn, the rest is kept."""
    vocabulary = {t.data_ptr() for t in _vocabulary_tensors(model, num_rows(model))}
    kept = {n: t for n, t in model.state_dict().items() if t.data_ptr() not in vocabulary}
    config = copy.deepcopy(model.config)
    for name, value in {"vocab_size": size, **special_ids}.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(config)
    fresh.load_state_dict(kept, strict=False)
    fresh.train(False)
    return fresh


# Embeddings for a new vocabulary from those of an old one, token by token.


def transferred(
    weight: Tensor, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, *, seed: int
) -> tuple[Tensor, int]:
    """(len(new), width): each token's row is the mean of its old pieces' rows (Gee et al., 2022).

    Special tokens keep the row of the same role. What the old vocabulary cannot write is drawn with
    the old rows' mean and deviation. Also how many rows were not drawn.
    """
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn((len(new), weight.shape[1]), generator=draws)
    rows = weight.mean(0) + rows * weight.std(0)
    num_known = 0
    for token, pieces in enumerate(_pieces(old, new)):
        if pieces:
            rows[token] = weight[pieces].mean(0)
            num_known += 1
    return rows, num_known


def _pieces(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> list[list[int]]:
    """The old ids that write each new token; empty where they cannot."""
    roles = {
        getattr(new, role): getattr(old, role)
        for role in new.SPECIAL_TOKENS_ATTRIBUTES
        if isinstance(getattr(new, role, None), str)
    }
    known = old.get_vocab()
    pieces: list[list[int]] = []
    for token in range(len(new)):
        name = new.convert_ids_to_tokens(token)
        if name in roles:
            same = known.get(roles[name])
            pieces.append([] if same is None else [same])
            continue
        text = str(new.decode([token]))
        inside = known.get(CONTINUES + text) if text and not text.startswith(" ") else None
        ids = [inside] if inside is not None else old(text, add_special_tokens=False)["input_ids"]
        pieces.append([] if old.unk_token_id in ids or "\ufffd" in text else list(ids))
    return pieces
