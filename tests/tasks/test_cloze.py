"""A cloze is asked in its gap, trained on its word alone, and answered by one of its words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lcc.config.cards import decode
from lcc.core.errors import DataError
from lcc.evaluation.predict import Predictor
from lcc.tasks.encode import IGNORED
from lcc.tasks.task import Task
from lcc.training.batches import collate
from lcc.training.loss import logits_function

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "it", "was", "good", "bad", "film", "long", "."]
NODE = {
    "head": "masked", "fields": ["text", "label"], "template": "{text} it was {mask} .",
    "answer": "{label}", "labels": ["bad", "good"], "separator": " ", "truncate": "left",
    "verbalizer": {"neg": "bad", "pos": "good"},
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"id": "1", "text": "film", "label": "pos"},
    {"id": "2", "text": "long film", "label": "neg"},
    {"id": "3", "text": "long long film", "label": "pos"},
]


@pytest.fixture
def tokenizer() -> Any:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="film"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    return transformers.BertForMaskedLM(config).eval()


def told(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_only_the_gap_is_a_target(tokenizer: Any) -> None:
    example = decode(Task, NODE).encode(ROWS[1], tokenizer, max_length=32)
    assert told(tokenizer, example.input_ids) == "[CLS] long film it was [MASK] . [SEP]"
    targets = [label for label in example.labels if label != IGNORED]  # type: ignore[union-attr]
    assert targets == [WORDS.index("bad")]


def test_shots_have_their_words_in_place_and_long_texts_lose_their_beginning(tokenizer: Any) -> None:
    task = decode(Task, NODE)
    shown = task.prompt_ids(ROWS[0], tokenizer, demos=ROWS[1:2])
    expected = "[CLS] long film it was bad . film it was [MASK] . [SEP]"
    assert told(tokenizer, shown) == expected
    cut = task.prompt_ids(ROWS[2], tokenizer, max_length=7)
    assert told(tokenizer, cut) == "[CLS] film it was [MASK] . [SEP]"


def test_what_pretraining_reads_tells_no_label() -> None:
    assert decode(Task, NODE).text(ROWS[1]) == "long film"


def test_logits_and_answers_are_the_models_own_in_the_gap(tokenizer: Any, model: Any) -> None:
    task = decode(Task, NODE)
    examples = [task.encode(row, tokenizer, max_length=32) for row in ROWS]
    batch = collate(examples, head="masked", pad=0, device="cpu")
    expected = []
    with torch.no_grad():
        found = logits_function(model, "masked")(batch)
        for example in examples:
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
            expected.append(logits[example.input_ids.index(tokenizer.mask_token_id)])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    words = torch.stack(expected)[:, [WORDS.index("bad"), WORDS.index("good")]].argmax(-1)
    answers = Predictor(model, tokenizer, task, batch_size=2).answers(ROWS, {"answers"})
    assert [a.output for a in answers] == [("bad", "good")[i] for i in words.tolist()]
    assert [a.reference for a in answers] == ["good", "bad", "good"]


def test_words_that_begin_alike_or_a_gap_cut_off_are_refused(tokenizer: Any, model: Any) -> None:
    alike = decode(Task, {**NODE, "labels": ["good", "good film"]})
    with pytest.raises(DataError, match="two begin with the same token"):
        Predictor(model, tokenizer, alike).outputs(ROWS)
    with pytest.raises(DataError, match="exactly one gap, and after cutting to 5 tokens 0"):
        decode(Task, {**NODE, "truncate": "right"}).encode(ROWS[2], tokenizer, max_length=5)
