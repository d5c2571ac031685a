"""Conversations: the model's own template, and loss on the assistant's turns only."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lcc.config.cards import decode
from lcc.config.yaml_files import config_roots
from lcc.core.errors import DataError
from lcc.evaluation.predict import Predictor
from lcc.models.sources import Scratch, make_module, make_tokenizer
from lcc.tasks.chat import exchanges
from lcc.tasks.encode import IGNORED
from lcc.tasks.task import Task

TURNS = ["Hello.", "Hello, who are you?", "A friend.", "Then come in."]
ROW = {"id": "1", "turns": TURNS}


def task(**changes: Any) -> Task:
    fields = {"fields": ["turns"], "chat": True, "turns": "turns", "truncate": "left", **changes}
    return decode(Task, fields)


def scratch() -> Scratch:
    path = next(r / "model/tiny_chat.yaml" for r in config_roots() if (r / "model/tiny_chat.yaml").is_file())
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    return decode(Scratch, node["source"]["scratch"])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(scratch().tokenizer)


def test_only_what_the_assistant_says_is_learned(tokenizer: Any) -> None:
    example = task().encode(ROW, tokenizer, max_length=200)
    assert isinstance(example.labels, list)
    learned = tokenizer.decode([i for i in example.labels if i != IGNORED])
    assert learned == "Hello, who are you?</s>Then come in.</s>"
    assert tokenizer.decode(example.input_ids) == tokenizer.apply_chat_template(
        [{"role": r, "content": t} for r, t in zip(["user", "assistant"] * 2, TURNS, strict=True)],
        tokenize=False,
    ).rstrip("\n")


def test_the_prompt_at_inference_is_how_training_began(tokenizer: Any) -> None:
    what = task(system="You are kind.")
    example = what.encode(ROW, tokenizer, max_length=200)
    prompt = what.prompt_ids(ROW, tokenizer)
    assert example.input_ids[: len(prompt)] == prompt
    assert what.prompt_ids({"turns": TURNS[:3]}, tokenizer) == prompt
    assert tokenizer.decode(prompt).startswith("<s>system: You are kind.</s>")


def test_a_long_conversation_loses_its_oldest_turns(tokenizer: Any) -> None:
    whole = task().encode(ROW, tokenizer, max_length=200)
    example = task().encode(ROW, tokenizer, max_length=len(whole.input_ids) - 1)
    short = task().encode({"turns": TURNS[2:]}, tokenizer, max_length=200)
    assert example.input_ids == short.input_ids
    assert example.num_truncated == len(whole.input_ids) - len(short.input_ids)
    prompt = task().prompt_ids(ROW, tokenizer)
    assert (
        tokenizer.decode(task().prompt_ids(ROW, tokenizer, max_length=len(prompt) - 1))
        == "<s>user: A friend.</s>\nassistant: "
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_exchange_longer_than_the_window_is_cut_and_counted(tokenizer: Any, side: str) -> None:
    row = {"turns": ["Hello, hello, hello!", "Come in."]}
    whole = task(truncate=side).encode(row, tokenizer, max_length=200)
    example = task(truncate=side).encode(row, tokenizer, max_length=len(whole.input_ids) - 5)
    assert isinstance(example.labels, list) and len(example.labels) == len(example.input_ids)
    assert len(example.input_ids) == len(whole.input_ids) - 5 and example.num_truncated == 5
    said = tokenizer.decode([i for i in example.labels if i != IGNORED])
    assert said == "Come in.</s>" if side == "left" else "Come in.</s>".startswith(said)


def test_the_likelihood_is_that_of_every_assistant_turn(tokenizer: Any) -> None:
    what, module = task(), make_module(scratch(), "causal", tokenizer)
    row = {**ROW, "id": "1"}
    (found,) = Predictor(module, tokenizer, what).answers([row], {"likelihood"})
    said = [TURNS[1], TURNS[3]]
    each = [ids for _, ids in exchanges(what, row, tokenizer)]
    assert [tokenizer.decode(ids) for ids in each] == said
    assert found.num_tokens == sum(map(len, each))
    assert found.num_bytes == sum(len(text.encode()) for text in said)
    singles = [
        Predictor(module, tokenizer, what).answers([{"id": "1", "turns": TURNS[:n]}], {"likelihood"})
        for n in (2, 4)
    ]
    (first,), (both,) = singles
    assert found.nats == pytest.approx(both.nats)
    assert (first.num_tokens or 0) < (found.num_tokens or 0)


@pytest.mark.parametrize("turns", [None, [], [1, 2]])
def test_a_row_without_texts_says_so(tokenizer: Any, turns: Any) -> None:
    with pytest.raises(DataError, match="row 7: turns is no list of texts"):
        task().encode({"id": 7, "turns": turns}, tokenizer, max_length=9)


def test_turns_need_a_chat() -> None:
    with pytest.raises(Exception, match="turns, system and grounding need chat: true"):
        task(chat=False)
