"""GGUF metadata: llama.cpp's name, hyperparameters and vocabulary of every family that can be written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError
from lcc.core.lazy import torch, transformers
from lcc.models.card import read_card, read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3",
}  # fmt: skip
SWA_THETA = 10_000.0  # llama.cpp's own for windowed layers
PLAIN_ROPE = ("default", "linear", "llama3")


def refusal(folder: Path) -> str | None:
    """Why no GGUF of the checkpoint in `folder` can be written, as a sentence."""
    raw = read_json(folder / "config.json")
    kind, card = raw.get("model_type"), read_card(folder)
    if kind not in ARCHITECTURES or card.head != "causal":
        return (
            f"GGUF is written for causal models of the families {', '.join(ARCHITECTURES)}, "
            f"not for {kind} ({card.head})."
        )
    config = transformers.AutoConfig.from_pretrained(folder)
    ropes = list(_ropes(config).values())
    odd = next((r for r in ropes if r.get("rope_type", "default") not in PLAIN_ROPE), None)
    if odd is not None:
        return f"positions scaled by {odd['rope_type']!r} are not written to GGUF."
    if any(r.get("partial_rotary_factor", 1.0) != 1.0 for r in ropes):
        return "heads that are rotated in part are not written to GGUF."
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != config.head_dim:
        return f"llama.cpp scales queries by the width of a head ({config.head_dim}), this model by {scalar}."
    period = _period(config)
    if period is None or (kind == "gemma2" and period not in (0, 2)):
        return (
            "llama.cpp lets every n-th layer see everything and all others a window; the "
            "layers of this model have another order."
        )
    if getattr(config, "mlp_bias", False):
        return "llama.cpp has no biases in this family's feed-forward layers."
    return None


@dataclass(frozen=True)
class Family:
    """One model's config, read as llama.cpp reads it."""

    config: Any
    arch: str

    @property
    def head_dim(self) -> int:
        config = self.config
        head_dim = getattr(config, "head_dim", None)
        return int(head_dim or config.hidden_size // config.num_attention_heads)

    def name_map(self) -> Any:
        """transformers' names → GGUF's, from the gguf package."""
        import gguf

        wanted = next(a for a, word in gguf.MODEL_ARCH_NAMES.items() if word == self.arch)
        return gguf.get_tensor_name_map(wanted, self.config.num_hidden_layers)

    def rows(self, name: str) -> Tensor | None:
        """In which order llama.cpp wants the outputs of a layer; None: as they are.

        Its Llama rotates neighbouring pairs where transformers rotates the two halves of a head.
        """
        layer = name.rpartition(".")[0]
        if self.arch != "llama" or not layer.endswith(("q_proj", "k_proj")):
            return None
        config = self.config
        queries = layer.endswith("q_proj")
        heads = config.num_attention_heads if queries else config.num_key_value_heads
        order = torch.arange(heads * self.head_dim).view(heads, 2, -1)
        return order.transpose(1, 2).reshape(-1)

    def adjusted(self, name: str, tensor: Tensor) -> Tensor:
        """A vector as llama.cpp multiplies with it: Gemma's norms are written with their one."""
        is_norm = name.endswith("norm.weight")
        return tensor + 1 if self.arch.startswith("gemma") and is_norm else tensor

    def extra(self) -> dict[str, Tensor]:
        """Tensors that transformers computes from the config: Llama 3's stretched frequencies."""
        rope = _ropes(self.config).get("full_attention", {})
        if rope.get("rope_type") != "llama3":
            return {}
        theta, dim = rope["rope_theta"], self.head_dim
        plain = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](self.config, "cpu")
        return {"rope_freqs.weight": plain / scaled}


def family_of(folder: Path) -> Family:
    """The family of a checkpoint that `refusal` lets pass."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return Family(config, ARCHITECTURES[config.model_type])


def write_keys(writer: Any, family: Family, num_tokens: int) -> None:
    """The sizes and constants of a model, by GGUF's names."""
    config, head_dim = family.config, family.head_dim
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(num_tokens)
    _write_rope(writer, family)
    _write_windows(writer, family)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _write_rope(writer: Any, family: Family) -> None:
    import gguf

    ropes = _ropes(family.config)
    rope = ropes["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    windowed = ropes.get("sliding_attention", {})
    if windowed.get("rope_theta", SWA_THETA) != SWA_THETA:
        writer.add_rope_freq_base_swa(windowed["rope_theta"])


def _write_windows(writer: Any, family: Family) -> None:
    config = family.config
    period = _period(config)
    if period:
        writer.add_sliding_window(config.sliding_window)
    if period and family.arch == "gemma3":
        writer.add_sliding_window_pattern(period)


def _windowed(config: Any) -> list[bool]:
    """Of every layer, whether it sees a window only."""
    kinds = list(getattr(config, "layer_types", None) or [])
    return [kind == "sliding_attention" for kind in kinds]


def _period(config: Any) -> int | None:
    """Every how many layers one sees everything; 0 where all do, None where there is no rule."""
    windowed = _windowed(config)
    if not any(windowed):
        return 0
    if all(windowed):
        return None  # llama.cpp wants one that sees everything.
    period = windowed.index(False) + 1
    usual = [(i + 1) % period != 0 for i in range(len(windowed))]
    return period if windowed == usual else None


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary settings by kind of layer; one for all stands under `full_attention`."""
    by_kind = dict(config.rope_parameters or {})
    if "rope_theta" in by_kind or "rope_type" in by_kind:
        return {"full_attention": by_kind}
    return {str(kind): dict(settings) for kind, settings in by_kind.items()}


def names_and_roles(family: Family, names: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(transformers' name, GGUF's name) of every weight that the file holds."""
    known = family.name_map()
    tied = bool(getattr(family.config, "tie_word_embeddings", False))
    for name in names:
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        role = known.get_name(name, try_suffixes=(".weight", ".bias"))
        assert role is not None, f"GGUF has no name for {name}"
        yield name, role


# A tokenizer as llama.cpp reads it: pieces, their kinds, merges or scores, and special ids.

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NEVER_MERGED = -1e6
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
# How a tokenizer cuts text before it merges → llama.cpp's word for it.
CUTS = ((r"\p{N}{1,3}", "llama-bpe"), (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", "qwen2"))
SPECIAL = {"bos": "add_bos_token_id", "eos": "add_eos_token_id", "pad": "add_pad_token_id",
           "unk": "add_unk_token_id"}  # fmt: skip


def write_vocabulary(writer: Any, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> None:
    """All of a tokenizer that GGUF can hold, its chat template included.

    `num_tokens` is the embedding's; ids beyond the tokenizer's are filled up. Raises RecipeError
    for a tokenizer that llama.cpp has no kind for.
    """
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    if document["model"].get("type") != "BPE":
        raise RecipeError(
            f"a tokenizer of the kind {document['model'].get('type')} is not written to GGUF; BPE is."
        )
    pieces, kinds = _pieces(document, num_tokens)
    merges = [m if isinstance(m, list) else m.split(" ") for m in document["model"]["merges"]]
    if _is_byte_level(document):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(document))
        writer.add_token_merges([" ".join(merge) for merge in merges])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(pieces, merges))
        writer.add_add_space_prefix(_prepends_space(document))
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    _write_specials(writer, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pieces(document: dict[str, Any], num_tokens: int) -> tuple[list[str], list[int]]:
    by_id = {i: piece for piece, i in document["model"]["vocab"].items()}
    kinds = {i: BYTE if BYTE_PIECE.fullmatch(piece) else NORMAL for i, piece in by_id.items()}
    for added in document.get("added_tokens", []):
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        if added["content"] == document["model"].get("unk_token"):
            kinds[added["id"]] = UNKNOWN
    if max(by_id) >= num_tokens:
        raise RecipeError(f"the tokenizer has {max(by_id) + 1} tokens, the model {num_tokens}.")
    return (
        [by_id.get(i, f"[PAD{i}]") for i in range(num_tokens)],
        [kinds.get(i, UNUSED) for i in range(num_tokens)],
    )


def _is_byte_level(document: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(document.get("pre_tokenizer")))


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer's or normalizer's steps, whether or not they stand in a sequence."""
    if not node:
        return
    inner = node.get("pretokenizers") or node.get("normalizers")
    if inner is None:
        yield node
    for part in inner or ():
        yield from _parts(part)


def _cut(document: dict[str, Any]) -> str:
    """llama.cpp's word for how text is cut; GPT-2's rule by default."""
    for part in _parts(document["pre_tokenizer"]):
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


def _prepends_space(document: dict[str, Any]) -> bool:
    steps = [*_parts(document.get("normalizer")), *_parts(document.get("pre_tokenizer"))]
    return any(
        step["type"] == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps
    )


def _write_specials(writer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    for word, method in SPECIAL.items():
        token_id = getattr(tokenizer, f"{word}_token_id")
        if token_id is not None:
            getattr(writer, method)(token_id)
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = ids[: len(ids) - len(bare)] if ids[-len(bare) :] == bare else ids[:1]
    writer.add_add_bos_token(bool(before) and before[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] != bare[-1] and ids[-1] == tokenizer.eos_token_id)
