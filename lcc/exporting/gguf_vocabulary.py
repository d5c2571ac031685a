"""A tokenizer as llama.cpp reads it: pieces, their kinds, merges or scores, and special ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NEVER_MERGED = -1e6
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
# How a tokenizer cuts text before it merges → llama.cpp's word for it.
CUTS = (
    (r"\p{N}{1,3}", "llama-bpe"),
    (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", "qwen2"),
)
SPECIAL = {"bos": "add_bos_token_id", "eos": "add_eos_token_id", "pad": "add_pad_token_id",
           "unk": "add_unk_token_id"}  # fmt: skip


def write_vocabulary(writer: Any, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> None:
    """All of a tokenizer that GGUF can hold, its chat template included.

    `num_tokens` is the embedding's; ids beyond the tokenizer's are filled up. Raises RecipeError
    for a tokenizer that llama.cpp has no kind for.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    if told["model"].get("type") != "BPE":
        raise RecipeError(f"a tokenizer of the kind {told['model'].get('type')} is not written to "
                          "GGUF; BPE is.")  # fmt: skip
    pieces, kinds = _pieces(told, num_tokens)
    merges = [m if isinstance(m, list) else m.split(" ") for m in told["model"]["merges"]]
    if _is_byte_level(told):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(told))
        writer.add_token_merges([" ".join(merge) for merge in merges])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(pieces, merges))
        writer.add_add_space_prefix(_prepends_space(told))
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    _write_specials(writer, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pieces(told: dict[str, Any], num_tokens: int) -> tuple[list[str], list[int]]:
    by_id = {i: piece for piece, i in told["model"]["vocab"].items()}
    kinds = {i: BYTE if BYTE_PIECE.fullmatch(piece) else NORMAL for i, piece in by_id.items()}
    for added in told.get("added_tokens", []):
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        if added["content"] == told["model"].get("unk_token"):
            kinds[added["id"]] = UNKNOWN
    if max(by_id) >= num_tokens:
        raise RecipeError(f"the tokenizer has {max(by_id) + 1} tokens, the model {num_tokens}.")
    return ([by_id.get(i, f"[PAD{i}]") for i in range(num_tokens)],
            [kinds.get(i, UNUSED) for i in range(num_tokens)])  # fmt: skip


def _is_byte_level(told: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(told.get("pre_tokenizer")))


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer's or normalizer's steps, whether or not they stand in a sequence."""
    if not node:
        return
    inner = node.get("pretokenizers") or node.get("normalizers")
    if inner is None:
        yield node
    for part in inner or ():
        yield from _parts(part)


def _cut(told: dict[str, Any]) -> str:
    """llama.cpp's word for how text is cut; GPT-2's rule where nothing else is said."""
    for part in _parts(told["pre_tokenizer"]):
        if part["type"] == "Digits" and part.get("individual_digits"):
            return "smollm"
        pattern = part.get("pattern", {})
        text = pattern.get("Regex", "") if isinstance(pattern, dict) else ""
        for mark, word in CUTS:
            if mark in text:
                return word
    return "gpt-2"


def _scores(pieces: list[str], merges: list[list[str]]) -> list[float]:
    """The earlier a piece is merged the higher: so llama.cpp merges in the same order."""
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    return [-float(rank[piece]) if piece in rank else NEVER_MERGED for piece in pieces]


def _prepends_space(told: dict[str, Any]) -> bool:
    steps = [*_parts(told.get("normalizer")), *_parts(told.get("pre_tokenizer"))]
    return any(step["type"] == "Prepend" or step.get("prepend_scheme") in ("first", "always")
               for step in steps)  # fmt: skip


def _write_specials(writer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    for word, method in SPECIAL.items():
        found = getattr(tokenizer, f"{word}_token_id")
        if found is not None:
            getattr(writer, method)(found)
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = ids[: len(ids) - len(bare)] if ids[-len(bare) :] == bare else ids[:1]
    writer.add_add_bos_token(bool(before) and before[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] != bare[-1] and ids[-1] == tokenizer.eos_token_id)
