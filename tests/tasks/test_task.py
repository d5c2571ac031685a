"""A task makes the same prompt for training and for decoding, and says what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lcc.config.cards import Mistakes, decode
from lcc.core.errors import DataError
from lcc.tasks.encode import IGNORED
from lcc.tasks.task import Decode, Task
from lcc.tasks.template import fill

ROW = {"id": "1", "source": "open the file", "target": "打开 文件"}
NODE: dict[str, Any] = {
    "fields": ["source", "target"],
    "template": "English: {source}\nChinese:",
    "answer": " {target}",
}
ROWS = [{"id": str(i), "source": f"word {i}" * (i + 1), "target": "字"} for i in range(8)]
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tokenizer(bos: bool = True) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(["English: open the file\nChinese: 打开 文件"] * 2, trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def task(**changes: Any) -> Task:
    return decode(Task, {**NODE, **changes})


def test_literal_braces_stand_for_themselves() -> None:
    assert fill('{"a": {x}} {{x}} {} {0}', {"x": 1}) == '{"a": 1} {x} {} {0}'


def test_values_with_braces_are_not_filled_again() -> None:
    assert fill("{x}", {"x": "{y}", "y": "secret"}) == "{y}"


def test_a_row_without_the_field_is_named() -> None:
    with pytest.raises(DataError, match="row 7: no field 'source'"):
        task().prompt({"id": "7", "target": "x"})


def test_a_template_may_name_only_the_fields_of_the_task() -> None:
    with pytest.raises(Mistakes, match=r"template names \{sorce\}, which is not a field"):
        task(template="{sorce}")


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_training_starts_with_the_very_tokens_that_decoding_sees(bos: bool, chat: bool) -> None:
    words = tokenizer(bos)
    words.chat_template = CHAT
    one = task(chat=chat)
    example = one.encode(ROW, words, max_length=500)
    prompt = one.prompt_ids(ROW, words)
    assert example.input_ids[: example.num_prompt] == prompt
    assert example.input_ids.count(words.bos_token_id) == (1 if bos or chat else 0)
    assert isinstance(example.labels, list)
    assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert example.labels[len(prompt) :] == example.input_ids[len(prompt) :]
    assert example.input_ids[-1] == words.eos_token_id
    assert words.decode(example.input_ids[len(prompt) :], skip_special_tokens=True).strip() == ("打开 文件")


def test_what_is_cut_is_counted_and_the_completion_stays() -> None:
    words = tokenizer()
    whole = task().encode(ROW, words, max_length=500)
    for side in ("left", "right"):
        short = task(truncate=side).encode(ROW, words, max_length=len(whole.input_ids) - 3)
        assert short.num_truncated == 3
        assert len(short.input_ids) == len(whole.input_ids) - 3
        assert short.input_ids[0] == words.bos_token_id
        assert short.input_ids[short.num_prompt :] == whole.input_ids[whole.num_prompt :]


def test_plain_text_is_all_completion() -> None:
    words = tokenizer()
    text = decode(Task, {"fields": ["text"], "answer": "{text}"})
    example = text.encode({"id": "1", "text": "open"}, words, max_length=100)
    assert example.num_prompt == 1
    assert example.labels == [IGNORED, *example.input_ids[1:]]


def test_shots_are_the_same_every_time_and_change_with_the_seed() -> None:
    one = task(shots=2)
    assert one.draw(ROWS, 3) == one.draw(list(reversed(ROWS)), 3)
    assert len({tuple(row["id"] for row in one.draw(ROWS, seed)) for seed in range(8)}) > 1
    shown = one.prompt(ROW, one.draw(ROWS, 3))
    assert shown.endswith("English: open the file\nChinese:")
    assert shown.count("Chinese: 字\n") == 2


def test_shots_show_every_label_in_turns_as_the_verbalizer_says_it() -> None:
    node = {
        "fields": ["text", "label"],
        "template": "{text} is",
        "answer": " {label}",
        "labels": ["good", "poor"],
        "verbalizer": {"neg": "poor", "pos": "good"},
    }
    rows = [{"id": str(i), "text": "it", "label": "pos" if i % 5 else "neg"} for i in range(40)]
    chosen = decode(Task, node).draw(rows, 0, 6)
    assert sorted(row["label"] for row in chosen) == ["neg"] * 3 + ["pos"] * 3
    assert decode(Task, node).text(rows[0]) == "it is poor"


def test_labels_come_from_the_training_split() -> None:
    class Data:
        def rows(self, split: str) -> list[dict[str, Any]]:
            assert split == "train"
            return [{"id": "1", "text": "a", "label": "pos"}, {"id": "2", "text": "b", "label": 0}]

    node = {
        "head": "classify",
        "fields": ["text", "label"],
        "template": "{text}",
        "answer": "{label}",
        "labels": "from_data",
    }
    unknown = decode(Task, node)
    with pytest.raises(DataError, match="not known without data"):
        unknown.label({"id": "1", "label": "pos"})
    known = unknown.for_data(Data())  # type: ignore[arg-type]
    assert known.label_names == ("0", "pos")
    example = known.encode({"id": "1", "text": "a", "label": "pos"}, tokenizer(), max_length=9)
    assert example.labels == 1
    with pytest.raises(DataError, match="'neg' is not one of 0, pos"):
        known.label({"id": "3", "label": "neg"})


def test_a_short_prompt_allows_few_new_tokens() -> None:
    assert Decode(max_new_tokens=50, max_length_ratio=2.0).limit(10) == 20
    assert Decode(max_new_tokens=50, max_length_ratio=2.0).limit(100) == 50
    assert Decode(max_new_tokens=50).limit(1) == 50


@pytest.mark.parametrize("max_length", [4, 7])
def test_a_long_text_for_an_encoder_is_cut_between_its_special_tokens(max_length: int) -> None:
    known = tokenizer()
    known.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    reading = task(head="embed", template="{source}", answer="{target}")
    row = {"id": "1", "source": "open the file " * 4, "target": ""}
    whole = known(row["source"])["input_ids"]
    example = reading.encode(row, known, max_length=max_length)
    assert example.input_ids == [1, *whole[1 : max_length - 1], 2]
    assert example.num_truncated == len(whole) - max_length
