"""A corpus loses no token, knows its borders, and is finished as if it had never been stopped."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import own_signals
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lcc.core.errors import PreemptedError
from lcc.core.progress import Progress
from lcc.distributed.dist import SINGLE
from lcc.training.pretraining import STARTS_SENTENCE, STARTS_WORD, Corpus, Document, Encoding, tokenised

LETTERS = "abcdefghij"
NUM_DOCUMENTS = 1300  # several batches of documents, several shards


def tokenizer(**specials: str) -> PreTrainedTokenizerFast:
    """Letters are tokens, and words are what stands between spaces."""
    tokens = ["<pad>", "<s>", "</s>", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    inner = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", **specials)


def documents() -> list[Document]:
    """Each of some sentences of some words, by its number; every seventh is empty."""
    found = []
    for n in range(NUM_DOCUMENTS):
        sentences = [" ".join(LETTERS[(n + i) % 10 :][:3] for i in range(n % 4 + 1))] * (n % 3 + 1)
        found.append(sentences if n % 7 else [])
    return found


def source(start: int) -> Iterator[tuple[int, Document]]:
    """The place of a document stands for its byte."""
    for n, document in enumerate(documents()[start:], start=start):
        yield n + 1, document


def make(folder: Path, read=source, *, shard_tokens: int = 2000) -> Corpus:  # type: ignore[no-untyped-def]
    encode = Encoding(tokenizer(bos_token="<s>", eos_token="</s>"), ends=True)
    return tokenised(
        read,
        encode,
        folder,
        dist=SINGLE,
        progress=Progress(quiet=True),
        label="train",
        shard_tokens=shard_tokens,
    )


def expected() -> list[list[int]]:
    known = tokenizer()
    rows = []
    for document in documents():
        ids = [i for text in document for i in known(text)["input_ids"]]
        rows.append([*ids, 2] if ids else [])
    return [row for row in rows if row]


def bytes_of(folder: Path) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())]


def test_no_token_is_lost_and_every_border_is_known(tmp_path: Path) -> None:
    corpus, rows = make(tmp_path), expected()
    assert len(corpus.shards) > 3
    assert corpus.tokens(0, corpus.num_tokens) == [i for row in rows for i in row]
    starts = [0, *corpus.ends[:-1].tolist()]
    assert [corpus.tokens(a, b) for a, b in zip(starts, corpus.ends.tolist(), strict=True)] == rows


def test_a_slice_across_shards_is_the_slice(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    whole = corpus.tokens(0, corpus.num_tokens)
    border = corpus._starts[1]
    assert 0 < border < corpus.num_tokens
    assert corpus.tokens(border - 3, border + 5) == whole[border - 3 : border + 5]
    assert corpus.tokens(border, border) == []


def test_words_and_sentences_begin_where_they_do(tmp_path: Path) -> None:
    encode = Encoding(tokenizer(eos_token="</s>"), ends=True)
    (found,) = encode([["abc de", "f"]])
    word, sentence = STARTS_WORD, STARTS_WORD | STARTS_SENTENCE
    assert found.flags == [sentence, 0, 0, word, 0, sentence, word]  # the end token is a word too


def test_a_start_token_stands_only_where_the_tokenizer_writes_one() -> None:
    plain = Encoding(tokenizer(bos_token="<s>", eos_token="</s>"), ends=True)
    assert plain([["a"]])[0].ids == [3, 2]
    bare = Encoding(tokenizer(bos_token="<s>", eos_token="</s>"), ends=False)
    assert bare([["a"]])[0].ids == [3]


class Stopping:
    """A source that sends this very process a signal at one document, once."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number = at, number

    def __call__(self, start: int) -> Iterator[tuple[int, Sequence[str]]]:
        for after, document in source(start):
            if after == self.at:
                self.at = -1
                own_signals.send(self.number)
            yield after, document


@pytest.mark.parametrize("at", [3, 700, NUM_DOCUMENTS])
def test_tokenising_that_was_asked_to_stop_is_finished_to_the_same_bytes(tmp_path: Path, at: int) -> None:
    make(tmp_path / "whole")
    reading = Stopping(at, signal.SIGTERM)
    with pytest.raises(PreemptedError, match="while tokenising train; whole shards are kept"):
        make(tmp_path / "stopped", reading)
    make(tmp_path / "stopped")
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "whole")


def test_tokenising_that_was_killed_is_finished_to_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "whole")
    command = [sys.executable, __file__, str(tmp_path / "killed"), "900"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert 0 < len(Corpus(tmp_path / "killed").shards) < len(Corpus(tmp_path / "whole").shards)
    make(tmp_path / "killed")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_finished_corpus_is_not_read_again(tmp_path: Path) -> None:
    first = make(tmp_path)
    read: list[int] = []

    def watched(start: int) -> Iterator[tuple[int, Document]]:
        for after, document in source(start):
            read.append(after)
            yield after, document

    again = make(tmp_path, watched)
    assert again.num_tokens == first.num_tokens and not read


if __name__ == "__main__":
    make(Path(sys.argv[1]), Stopping(int(sys.argv[2]), signal.SIGKILL))
