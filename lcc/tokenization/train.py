"""Tokenizer training: byte-level BPE, WordPiece, Unigram; the same bytes every time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lcc.core.errors import RecipeError
from lcc.core.lazy import tokenizers, transformers
from lcc.core.types import Head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["bpe", "wordpiece", "unigram"]
PARALLEL = "TOKENIZERS_PARALLELISM"
NUM_BYTES = 256
CONTINUES = "##"  # how WordPiece writes a piece inside a word
MOVED, LAST_OF_PLANE = 0x100000, "\uffff"
DIGITS = 6  # of a Unigram piece's log-probability


@dataclass(frozen=True)
class SpecialTokens:
    """What stands around a text.

    `specials` are roles of transformers (`pad_token`, `bos_token` …) → the token; `single` and
    `pair` say where they stand, in the notation of tokenizers (`<s> $A`). `sentinels` are T5's
    `<extra_id_0>` and on, which stand for what was taken out.
    """

    specials: Mapping[str, str] = field(default_factory=dict)
    single: str = "$A"
    pair: str | None = None
    sentinels: int = 0

    @property
    def tokens(self) -> list[str]:
        """Every special token once, in the order of their ids."""
        extra = [f"<extra_id_{i}>" for i in range(self.sentinels)]
        return list(dict.fromkeys([*self.specials.values(), *extra]))


_GENERATING = SpecialTokens(
    {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "<s> $A",
    "<s> $A <s>:1 $B:1",
)
_ENCODING = SpecialTokens(
    {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
     "mask_token": "[MASK]"},
    "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1",
)  # fmt: skip
_TRANSLATING = SpecialTokens(
    {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "$A </s>",
    "$A </s> $B:1 </s>:1",
    sentinels=100,
)
DRESSES: dict[Head, SpecialTokens] = {"causal": _GENERATING, "seq2seq": _TRANSLATING}
"""What is customary for a head; every other one's model is an encoder of BERT's kind."""


def special_tokens_for(head: Head) -> SpecialTokens:
    """The customary special tokens of a model with this head."""
    return DRESSES.get(head, _ENCODING)


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: Kind,
    vocab_size: int,
    special_tokens: SpecialTokens,
    lowercase: bool = False,
) -> PreTrainedTokenizerBase:
    """A fast tokenizer of at most `vocab_size` tokens; ids of specials come first.

    Raises RecipeError where the size leaves no room for what must be in the vocabulary.
    """
    least = len(special_tokens.tokens) + (NUM_BYTES if kind == "bpe" else 1)
    if vocab_size < least:
        raise RecipeError(
            f"tokenizer.vocab_size: {vocab_size} is less than the {least} tokens that a {kind} "
            "tokenizer with these special tokens must have."
        )
    with _one_thread():
        built = {"bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram}[kind](
            texts, vocab_size, special_tokens, lowercase
        )
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single=special_tokens.single,
        pair=special_tokens.pair,
        special_tokens=[(token, built.token_to_id(token)) for token in special_tokens.tokens],
    )
    made: PreTrainedTokenizerBase = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=built, clean_up_tokenization_spaces=False, **special_tokens.specials
    )
    return made


def _bpe(texts: Iterable[str], vocab_size: int, special_tokens: SpecialTokens, lowercase: bool) -> Any:
    """Every text can be written in bytes, so it needs no unknown token."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    if lowercase:
        built.normalizer = tokenizers.normalizers.Lowercase()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens.tokens,
        show_progress=False,
        initial_alphabet=alphabet,
    )
    built.train_from_iterator(texts, trainer)
    return built


def _wordpiece(texts: Iterable[str], vocab_size: int, special_tokens: SpecialTokens, lowercase: bool) -> Any:
    """WordPiece as BERT reads it, its pieces found by merging pairs.

    The library's own trainer numbers pieces inside words as its hash table hands them out, another
    order in every process. Written as characters of their own, they are numbered like all others.
    """
    unknown = _unknown(special_tokens, "wordpiece")
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    marked = (_marked(splitter.pre_tokenize_str(normalizer.normalize_str(text))) for text in texts)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens.tokens, show_progress=False
    )
    tokenizer.train_from_iterator(marked, trainer)
    vocabulary = {_unmarked(token): i for token, i in tokenizer.get_vocab().items()}
    built = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=unknown))
    built.normalizer, built.pre_tokenizer = normalizer, splitter
    built.decoder = tokenizers.decoders.WordPiece(prefix=CONTINUES)
    # Only now: the model must have the tokens before they can be special.
    built.add_special_tokens(special_tokens.tokens)
    return built


def _marked(words: Iterable[tuple[str, Any]]) -> str:
    """Words with every character but the first moved to Unicode's last plane, which is unused.

    A word with a character beyond the first plane is left out: it has nowhere to be moved.
    """
    kept = (word for word, _ in words if max(word) <= LAST_OF_PLANE)
    return " ".join(word[0] + "".join(chr(ord(c) + MOVED) for c in word[1:]) for word in kept)


def _unmarked(token: str) -> str:
    if ord(token[0]) < MOVED:
        return "".join(chr(ord(c) % MOVED) for c in token)
    return CONTINUES + "".join(chr(ord(c) - MOVED) for c in token)


def _unigram(texts: Iterable[str], vocab_size: int, special_tokens: SpecialTokens, lowercase: bool) -> Any:
    """Unigram over words that begin with a space's mark.

    The library sums likelihoods in another order in every process: what that does to the last
    digits is rounded off, but which of two equally useful pieces is dropped may differ.
    """
    unknown, normal = _unknown(special_tokens, "unigram"), tokenizers.normalizers
    built = tokenizers.Tokenizer(tokenizers.models.Unigram())
    built.normalizer = normal.Sequence([normal.NFKC(), normal.Lowercase()]) if lowercase else normal.NFKC()
    built.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    built.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens.tokens, show_progress=False, unk_token=unknown
    )
    built.train_from_iterator(texts, trainer)
    document = json.loads(built.to_str())
    num_special, vocabulary = len(special_tokens.tokens), document["model"]["vocab"]
    pieces = sorted(
        ([token, round(score, DIGITS)] for token, score in vocabulary[num_special:]),
        key=lambda piece: (-piece[1], piece[0]),
    )
    document["model"]["vocab"] = vocabulary[:num_special] + pieces
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def _unknown(special_tokens: SpecialTokens, kind: Kind) -> str:
    token = special_tokens.specials.get("unk_token")
    if token is None:
        raise RecipeError(f"tokenizer: a {kind} tokenizer needs an unk_token among its specials.")
    return token


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over texts (Unigram's likelihoods) must not depend on which thread was first."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLEL]
        else:
            os.environ[PARALLEL] = before
