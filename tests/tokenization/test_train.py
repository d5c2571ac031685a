"""Trained tokenizers: what they must have, what comes back out, the same bytes in every process."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from lcc.core.errors import RecipeError
from lcc.tokenization.special_tokens import frame_of
from lcc.tokenization.train import SpecialTokens, special_tokens_for, train_tokenizer

TEXTS = [
    "The harbour master counts the boats before the tide turns.",
    "Boats that miss the tide wait outside the harbour wall.",
    "A keeper winds the clock, trims the lamp and counts the boats again.",
    "港口的船在涨潮前回来。守塔人点亮了灯，又数了一遍船。",
    "错过潮水的船只好在港口外面等。",
] * 4
KINDS = {"bpe": "causal", "wordpiece": "masked", "unigram": "seq2seq"}


def trained(kind: str, *, size: int = 420, lowercase: bool = False):  # type: ignore[no-untyped-def]
    special_tokens = special_tokens_for(KINDS[kind])  # type: ignore[arg-type]
    return train_tokenizer(
        TEXTS, kind=kind, vocab_size=size, special_tokens=special_tokens, lowercase=lowercase
    )  # type: ignore[arg-type]


def digests() -> dict[str, str]:
    return {
        kind: hashlib.sha256(trained(kind).backend_tokenizer.to_str().encode()).hexdigest()
        for kind in ("bpe", "wordpiece")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_specials_come_first_and_the_size_is_kept(kind: str) -> None:
    made = trained(kind)
    tokens = special_tokens_for(KINDS[kind]).tokens  # type: ignore[arg-type]
    assert [made.convert_tokens_to_ids(token) for token in tokens] == list(range(len(tokens)))
    assert len(made) <= 420


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_text_comes_back_as_it_was(kind: str) -> None:
    made = trained(kind)
    for text in TEXTS[:4]:
        ids = made(text, add_special_tokens=False)["input_ids"]
        # NFKC, which Unigram reads texts in, knows one form of each comma.
        expected = text if kind == "bpe" else made.backend_tokenizer.normalizer.normalize_str(text)
        assert made.decode(ids) == expected


def test_bytes_make_every_text_writable() -> None:
    made = trained("bpe")
    text = "Ωμέγα — ☃ \t naïve"
    assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text


def test_a_wordpiece_tokenizer_can_fold_case() -> None:
    folded, kept = trained("wordpiece", lowercase=True), trained("wordpiece")
    assert folded("BOATS")["input_ids"] == folded("boats")["input_ids"]
    assert kept("BOATS")["input_ids"] != kept("boats")["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_by_the_plain_auto_class(kind: str, tmp_path: Path) -> None:
    made = trained(kind)
    made.save_pretrained(tmp_path)
    alone = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:5]:
        assert alone(text)["input_ids"] == made(text)["input_ids"]
    assert alone.special_tokens_map == made.special_tokens_map


def test_another_process_trains_the_same_bytes_but_for_unigrams() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == digests()


@pytest.mark.parametrize("kind, least", [("bpe", 260), ("wordpiece", 6), ("unigram", 104)])
def test_a_vocabulary_without_room_for_what_it_must_have_is_refused(kind: str, least: int) -> None:
    trained(kind, size=least) if kind == "bpe" else None
    with pytest.raises(RecipeError, match=rf"is less than the {least} tokens"):
        trained(kind, size=least - 1)


def test_a_kind_that_knows_unknown_tokens_needs_one() -> None:
    with pytest.raises(RecipeError, match="needs an unk_token"):
        train_tokenizer(
            TEXTS, kind="unigram", vocab_size=300, special_tokens=SpecialTokens({"pad_token": "<pad>"})
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_what_the_tokenizer_itself_adds(kind: str) -> None:
    made = trained(kind)
    first, second = TEXTS[0], TEXTS[3]
    a, b = (made(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    frame = frame_of(made)
    assert frame.single(a) == made(first)["input_ids"]
    ids, kinds = frame.pair(a, b)
    whole = made(first, second, return_token_type_ids=True)
    assert (ids, kinds) == (whole["input_ids"], whole["token_type_ids"])
    assert (frame.num_single, frame.num_pair) == (
        made.num_special_tokens_to_add(),
        made.num_special_tokens_to_add(pair=True),
    )


if __name__ == "__main__":
    print(json.dumps(digests()))
