"""Embeddings for a new vocabulary from those of an old one, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcc.core.lazy import torch
from lcc.parts.tokenizer_training import CONTINUES

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


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
    roles = {getattr(new, role): getattr(old, role) for role in new.SPECIAL_TOKENS_ATTRIBUTES
             if isinstance(getattr(new, role, None), str)}  # fmt: skip
    known = old.get_vocab()
    found: list[list[int]] = []
    for token in range(len(new)):
        name = new.convert_ids_to_tokens(token)
        if name in roles:
            same = known.get(roles[name])
            found.append([] if same is None else [same])
            continue
        text = str(new.decode([token]))
        inside = known.get(CONTINUES + text) if text and not text.startswith(" ") else None
        ids = [inside] if inside is not None else old(text, add_special_tokens=False)["input_ids"]
        found.append([] if old.unk_token_id in ids or "\ufffd" in text else list(ids))
    return found
