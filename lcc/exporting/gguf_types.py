"""Which block type each tensor of a GGUF file gets: llama.cpp's mixtures, and its ways out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lcc.exporting.ggml_blocks import BLOCK, PLAIN, SUPER_BLOCK

# What llama.cpp takes where a row is no multiple of 256.
NARROW = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
FILE_TYPES = {
    "F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0", "Q4_1": "MOSTLY_Q4_1", "Q5_0": "MOSTLY_Q5_0", "Q5_1": "MOSTLY_Q5_1",
    "Q2_K": "MOSTLY_Q2_K", "Q3_K_S": "MOSTLY_Q3_K_S", "Q3_K_M": "MOSTLY_Q3_K_M",
    "Q4_K_S": "MOSTLY_Q4_K_S", "Q4_K_M": "MOSTLY_Q4_K_M", "Q5_K_S": "MOSTLY_Q5_K_S",
    "Q5_K_M": "MOSTLY_Q5_K_M", "Q6_K": "MOSTLY_Q6_K",
}  # fmt: skip
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
BLOCK_NAME = re.compile(r"blk\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class Mixture:
    """A file type for a model of so many blocks; `tied`: the embedding is the head too."""

    name: str  # a key of FILE_TYPES
    num_blocks: int
    tied: bool

    @property
    def most(self) -> str:
        """The type that most tensors get."""
        return self.name.removesuffix("_S").removesuffix("_M")

    def wanted(self, tensor: str, shape: tuple[int, ...]) -> str:
        """The type a tensor should have, whether or not its rows divide."""
        if len(shape) < 2:
            return "F32"
        if "_K" not in self.name:
            return self.name
        if tensor == HEAD or (tensor == EMBEDDING and self.tied):
            return "Q6_K"
        found = BLOCK_NAME.fullmatch(tensor)
        return self.most if found is None else self._in_block(int(found[1]), found[2])

    def _in_block(self, number: int, part: str) -> str:
        better = _gets_more_bits(number, self.num_blocks)
        match self.name, part:
            case "Q2_K", "attn_v" | "ffn_down" | "attn_output":
                return "Q3_K"
            case "Q3_K_M", "attn_v":
                return "Q5_K" if number < 2 else "Q4_K"
            case "Q3_K_M", "ffn_down":
                first = number < self.num_blocks / 16
                return "Q5_K" if first else "Q4_K" if better else "Q3_K"
            case "Q3_K_M", "attn_output":
                return "Q4_K"
            case "Q4_K_S", "attn_v":
                return "Q5_K" if number < 4 else "Q4_K"
            case "Q4_K_S", "ffn_down":
                return "Q5_K" if number < self.num_blocks / 8 else "Q4_K"
            case (("Q4_K_M" | "Q5_K_M"), ("attn_v" | "ffn_down")):
                return "Q6_K" if better else self.most
        return self.most


def fitting(kind: str, num_inputs: int) -> str:
    """`kind`, or what is taken in its place where rows of `num_inputs` cannot be cut up so."""
    if kind in NARROW and num_inputs % SUPER_BLOCK:
        kind = NARROW[kind]
    return "F16" if kind not in PLAIN and num_inputs % BLOCK else kind


def _gets_more_bits(number: int, num_blocks: int) -> bool:
    """The first and last eighth, and every third between."""
    eighth = num_blocks // 8
    return number < eighth or number >= 7 * num_blocks // 8 or (number - eighth) % 3 == 2
