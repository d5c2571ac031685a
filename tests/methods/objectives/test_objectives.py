"""Pretraining objectives against what their papers say, counted and by slow references."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lcc.core.errors import DataError, RecipeError
from lcc.methods.objectives.causal import Causal
from lcc.methods.objectives.masked import Masked, Masking
from lcc.methods.objectives.next_sentence import NextSentence
from lcc.methods.objectives.spans import Spans
from lcc.tasks.encode import IGNORED
from lcc.tokenization.special_tokens import Frame
from lcc.training.loss import masked_logits, pair_loss
from lcc.training.packing import isolates
from lcc.training.pretraining import (
    STARTS_SENTENCE,
    STARTS_WORD,
    DrawnExample,
    DrawnExamples,
    Material,
    Objective,
)

MASK, CLS, SEP, EOS = 1, 2, 3, 4
FIRST, VOCABULARY = 10, 2000
ORDINARY = range(FIRST, VOCABULARY)
SENTINELS = list(range(VOCABULARY, VOCABULARY + 60))


@dataclass
class InMemory:
    """A corpus held in two lists."""

    ids: list[int]
    bits: list[int]
    ends: Any

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        return self.ids[start:stop]

    def flags(self, start: int, stop: int) -> list[int]:
        return self.bits[start:stop]


def corpus(lengths: Sequence[int], *, sentence: int = 7, seed: int = 0) -> InMemory:
    """Documents of distinct token ids, in words of one to three tokens."""
    dice, ids, bits = random.Random(seed), list[int](), list[int]()
    for length in lengths:
        left = 0
        for place in range(length):
            starts = left == 0 or place % sentence == 0
            left = dice.randint(1, 3) if starts else left
            left -= 1
            mark = STARTS_SENTENCE if place % sentence == 0 else 0
            bits.append(mark | (STARTS_WORD if starts else 0))
            ids.append(FIRST + len(ids) % (VOCABULARY - FIRST))
    return InMemory(ids, bits, np.cumsum(lengths))


def material(found: InMemory, *, length: int = 32, **changes: Any) -> Material:
    options: dict[str, Any] = {
        "corpus": found,
        "length": length,
        "frame": Frame([CLS], [SEP], [SEP], [0]),
        "mask": MASK,
        "ordinary": ORDINARY,
        "eos": EOS,
        "sentinels": SENTINELS,
        **changes,
    }
    return Material(**options)


def drawing(objective: Objective, given: Material, *, seed: int = 0) -> DrawnExamples:
    return DrawnExamples(objective, given, seed=seed, split="train")


def drawn(feed: DrawnExamples) -> list[DrawnExample]:
    return [feed.example(i) for i in range(len(feed))]


# Causal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[5], [40], [31, 1, 33, 64, 2, 2, 90], [32] * 5, [31] * 4])
def test_every_token_is_predicted_once_but_each_documents_first(lengths: list[int]) -> None:
    found = corpus(lengths)
    feed = drawing(Causal(), material(found))
    predicted: list[int] = []
    for (start, stop), one in zip(feed.pieces, drawn(feed), strict=True):
        assert one.input_ids == found.ids[start:stop]
        predicted += [start + i + 1 for i, label in enumerate(one.labels) if label != IGNORED]
        assert all(
            found.ids[start + i + 1] == label for i, label in enumerate(one.labels) if label != IGNORED
        )
    firsts = {0, *found.ends.tolist()}
    assert predicted == [i for i in range(found.num_tokens) if i not in firsts]


def test_all_blocks_but_the_last_are_full() -> None:
    feed = drawing(Causal(), material(corpus([13] * 50)))
    assert set(feed.lengths[:-1]) == {32}


def test_positions_start_again_with_every_document() -> None:
    found = corpus([31, 1, 33, 64, 2, 2, 90])
    feed = drawing(Causal(), material(found))
    for (start, stop), one in zip(feed.pieces, drawn(feed), strict=True):
        for i in range(stop - start):
            begun = max([start, *(int(e) for e in found.ends if start < e <= start + i)])
            assert one.positions[i] == start + i - begun


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_packed_documents_have_the_loss_that_they_have_alone() -> None:
    model, found = llama().double(), corpus([9, 4, 17, 6, 2, 23, 11])
    assert isolates(model)
    feed = drawing(Causal(), material(found, length=100, isolated=True))
    assert len(feed) == 1
    batch = feed.collate([0], pad=0, device="cpu")
    with torch.no_grad():
        logits = Causal().student(model)(batch)
        packed = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        alone, start = [], 0
        for end in found.ends.tolist():
            ids = torch.tensor([found.ids[start:end]])
            scores = model(input_ids=ids).logits[0, :-1]
            alone.append(torch.nn.functional.cross_entropy(scores, ids[0, 1:], reduction="none"))
            start = end
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-9, rtol=0)


def test_a_short_block_padded_beside_a_full_one_has_its_own_loss() -> None:
    model, found = llama().double(), corpus([20, 25, 8])
    feed = drawing(Causal(), material(found, isolated=True))
    both = feed.collate([0, 1], pad=0, device="cpu")
    student = Causal().student(model)
    with torch.no_grad():
        apart = [student(feed.collate([i], pad=0, device="cpu")) for i in (0, 1)]
        torch.testing.assert_close(student(both), torch.cat(apart), atol=1e-9, rtol=0)


def test_a_model_that_looks_across_documents_is_found_out() -> None:
    config = transformers.GPTNeoConfig(
        vocab_size=50,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        attention_types=[[["global"], 2]],
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    assert isolates(llama())
    assert not isolates(transformers.T5ForConditionalGeneration(tiny_t5()).eval())
    neo = transformers.GPTNeoForCausalLM(config).eval()
    assert isolates(neo) == _is_deaf_to_the_first_document(neo)


def _is_deaf_to_the_first_document(model: Any) -> bool:
    """The slow way: other tokens in the first document change nothing in the second."""
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    with torch.no_grad():
        first, second = (
            model(
                input_ids=torch.tensor([[*start, 9, 8, 7]]), position_ids=positions, use_cache=False
            ).logits[:, 4:]
            for start in ((1, 2, 3, 4), (11, 12, 13, 14))
        )
    return bool(torch.equal(first, second))


# Masked -------------------------------------------------------------------------------------------


def fates(feed: DrawnExamples, found: InMemory) -> Counter[str]:
    """What became of every masked token."""
    count: Counter[str] = Counter()
    for (start, _), one in zip(feed.pieces, drawn(feed), strict=True):
        for i, label in enumerate(one.labels):
            if label == IGNORED:
                continue
            assert label == found.ids[start + i - 1]
            shown = one.input_ids[i]
            count["mask" if shown == MASK else "same" if shown == label else "random"] += 1
    return count


def test_of_the_chosen_tokens_most_are_hidden_some_swapped_some_left() -> None:
    found = corpus([200] * 200)
    feed = drawing(Masked(), material(found, length=202))
    count = fates(feed, found)
    num = sum(count.values())
    assert num == 200 * 30  # 15 % of each piece, exactly
    for fate, share in {"mask": 0.8, "random": 0.1, "same": 0.1}.items():
        deviation = (num * share * (1 - share)) ** 0.5
        assert abs(count[fate] - num * share) < 4 * deviation, (fate, count)


def test_what_is_not_chosen_is_shown_as_it_is() -> None:
    found = corpus([50] * 20)
    feed = drawing(Masked(), material(found, length=60))
    for (start, stop), one in zip(feed.pieces, drawn(feed), strict=True):
        truth = [CLS, *found.ids[start:stop], SEP]
        assert all(
            a == b for a, b, label in zip(one.input_ids, truth, one.labels, strict=True) if label == IGNORED
        )
        assert (one.labels[0], one.labels[-1]) == (IGNORED, IGNORED)


def test_whole_words_are_hidden_whole() -> None:
    found = corpus([60] * 60)
    feed = drawing(Masked(masking=Masking(whole_words=True)), material(found, length=62))
    shares = []
    for (start, stop), one in zip(feed.pieces, drawn(feed), strict=True):
        chosen = [label != IGNORED for label in one.labels[1:-1]]
        shares.append(sum(chosen) / len(chosen))
        for i, (a, b) in enumerate(pairwise(chosen)):
            if not found.bits[start + i + 1] & STARTS_WORD:
                assert a == b, (start, stop, i)
    assert 0.13 < sum(shares) / len(shares) < 0.15 + 1e-9


def test_a_text_of_one_long_word_still_asks_for_something() -> None:
    found = InMemory([10, 11, 12], [3, 0, 0], np.array([3]))
    feed = drawing(Masked(masking=Masking(whole_words=True)), material(found))
    assert feed.example(0).num_targets == 3


@pytest.mark.parametrize("objective", [Masked(), NextSentence(), Spans()])
def test_a_drawing_is_a_function_of_seed_epoch_and_example(objective: Objective) -> None:
    given = material(corpus([60] * 6))
    feed = drawing(objective, given)
    later = drawn(feed.at(3))
    assert drawn(drawing(objective, given).at(3)) == later
    assert [one.num_targets for one in later] == list(feed.at(3).targets)
    assert drawn(feed.at(2)) != later
    assert drawn(drawing(objective, given, seed=1).at(3)) != later
    assert feed.at(3).lengths == feed.lengths


def test_pieces_of_documents_are_the_documents() -> None:
    found = corpus([70, 1, 30, 31])
    feed = drawing(Masked(), material(found))  # 30 tokens and two special ones
    assert feed.pieces == [(0, 30), (30, 60), (60, 70), (70, 71), (71, 101), (101, 131), (131, 132)]


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    with pytest.raises(DataError, match="this tokenizer has no mask token"):
        drawing(Masked(), material(corpus([60]), mask=None))


# Next sentence ------------------------------------------------------------------------------------


@dataclass
class Pair:
    first: list[int]
    second: list[int]
    relation: int
    labels: list[int] = field(default_factory=list)


def pairs(found: InMemory, given: Material, *, epochs: int = 1) -> list[Pair]:
    """The pairs as they were before anything was hidden."""
    feed, result = drawing(NextSentence(), given), []
    for epoch in range(epochs):
        for one in drawn(feed.at(epoch)):
            truth = [a if b == IGNORED else b for a, b in zip(one.input_ids, one.labels, strict=True)]
            cut = one.kinds.index(1)
            assert (truth[0], truth[cut - 1], truth[-1]) == (CLS, SEP, SEP)
            assert one.kinds == [0] * cut + [1] * (len(truth) - cut)
            result.append(Pair(truth[1 : cut - 1], truth[cut:-1], one.relation, one.labels))
    return result


def test_half_of_the_pairs_are_random() -> None:
    found = corpus([60] * 30)
    given = material(found, length=40)
    relations = [pair.relation for pair in pairs(found, given, epochs=20)]
    num = len(relations)
    assert num > 500
    assert abs(sum(relations) - num / 2) < 4 * (num / 4) ** 0.5


def test_a_true_pair_follows_and_a_random_one_is_from_another_document() -> None:
    found = corpus([60] * 30)
    for pair in pairs(found, material(found, length=40), epochs=4):
        place, other = pair.first[0] - FIRST, pair.second[0] - FIRST
        assert pair.first == found.ids[place : place + len(pair.first)]
        assert pair.second == found.ids[other : other + len(pair.second)]
        if pair.relation == 0:
            assert other == place + len(pair.first)
            assert found.bits[other] & STARTS_SENTENCE
        else:
            assert place // 60 != other // 60
            assert not set(pair.first) & set(pair.second)


@pytest.mark.parametrize("length", [12, 19, 40, 200])
def test_pairs_fit_and_runs_never_share_a_sentence(length: int) -> None:
    found = corpus([60, 33, 8, 100, 15], sentence=7)
    given = material(found, length=length)
    assert all(3 + len(p.first) + len(p.second) <= length for p in pairs(found, given, epochs=3))
    runs = drawing(NextSentence(), given).pieces
    assert all(a[1] <= b[0] for a, b in pairwise(runs))


def test_a_sentence_longer_than_the_room_is_passed_over() -> None:
    found = InMemory(list(range(10, 50)), [3, *[0] * 29, 3, *[0] * 4, 3, *[0] * 4], np.array([30, 40]))
    found.ends = np.array([40])
    more = corpus([30], seed=1)
    both = InMemory(found.ids + more.ids, found.bits + more.bits, np.array([40, 70]))
    runs = drawing(NextSentence(), material(both, length=23)).pieces
    assert runs[0] == (30, 40)


def test_one_document_makes_no_random_pairs_and_that_is_said() -> None:
    with pytest.raises(DataError, match="pairs from two documents at least"):
        drawing(NextSentence(), material(corpus([60])))


def bert(kind: Any = transformers.BertForPreTraining) -> Any:
    torch.manual_seed(0)
    return kind(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    ).eval()


def test_for_pairs_of_one_length_the_loss_is_berts_own() -> None:
    model = bert()
    feed = drawing(NextSentence(), material(corpus([60] * 30), length=40))
    alike = [i for i in range(len(feed)) if feed.targets[i] == feed.targets[0]][:40]
    batch = feed.collate(alike, pad=0, device="cpu")
    labels = torch.full(batch.inputs["input_ids"].shape, IGNORED)
    labels[batch.positions] = batch.targets
    with torch.no_grad():
        ours = float(pair_loss(model)(batch)) / len(batch.targets)
        theirs = model(**batch.inputs, labels=labels, next_sentence_label=batch.relations).loss  # type: ignore[attr-defined]
    assert {feed.example(i).relation for i in alike} == {0, 1}
    assert ours == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("kind", [transformers.BertForMaskedLM, transformers.BertForPreTraining])
def test_logits_at_masks_are_the_whole_models(kind: Any) -> None:
    model = bert(kind)
    feed = drawing(Masked(), material(corpus([60] * 4)))
    batch = feed.collate([0, 1, 5], pad=0, device="cpu")
    with torch.no_grad():
        output = model(**batch.inputs)
        whole = output[0][batch.positions]
        torch.testing.assert_close(masked_logits(model)(batch), whole)


def test_a_model_without_a_pair_head_is_refused() -> None:
    with pytest.raises(RecipeError, match="BertForMaskedLM has no head that tells pairs apart"):
        NextSentence().loss(bert(transformers.BertForMaskedLM))


# Spans --------------------------------------------------------------------------------------------


def tiny_t5() -> Any:
    return transformers.T5Config(
        vocab_size=VOCABULARY + 60,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )


@pytest.mark.parametrize("length", [2, 3, 5, 17, 100])
def test_a_text_is_put_together_again_from_input_and_target(length: int) -> None:
    found = corpus([length] * 40)
    feed = drawing(Spans(), material(found, length=120, frame=Frame([], [], [EOS], [])))
    for (start, stop), one in zip(feed.pieces, drawn(feed), strict=True):
        assert one.input_ids[-1] == EOS and one.labels[-1] == EOS
        sentinels = [token in SENTINELS for token in one.input_ids]
        assert not any(a and b for a, b in pairwise(sentinels))
        spans = _spans_of(one.labels[:-1])
        restored = [token for shown in one.input_ids[:-1] for token in (spans.get(shown) or [shown])]
        assert restored == found.ids[start:stop]


def _spans_of(target: list[int]) -> dict[int, list[int]]:
    """Sentinel → the tokens after it; the last one stands for nothing and ends the target."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in SENTINELS:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    assert list(spans) == SENTINELS[: len(spans)]
    last = spans.pop(SENTINELS[len(spans) - 1])
    assert last == [] and all(spans.values())
    return spans


def test_the_share_and_the_mean_length_are_those_asked() -> None:
    feed = drawing(Spans(share=0.15, mean_length=3), material(corpus([100] * 40), length=120))
    for one in drawn(feed):
        spans = _spans_of(one.labels[:-1])
        assert sum(map(len, spans.values())) == 15 and len(spans) == 5


def test_the_loss_is_t5s_own() -> None:
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(tiny_t5()).eval()
    feed = drawing(Spans(), material(corpus([30, 17]), length=40))
    batch = feed.collate([0, 1], pad=0, device="cpu")
    with torch.no_grad():
        ours = torch.nn.functional.cross_entropy(Spans().student(model)(batch), batch.targets)
        assert float(ours) == pytest.approx(float(model(**batch.inputs).loss), abs=1e-5)


def test_a_tokenizer_without_sentinels_is_refused() -> None:
    with pytest.raises(DataError, match="no <extra_id_0> and on"):
        drawing(Spans(), material(corpus([60]), sentinels=[]))
