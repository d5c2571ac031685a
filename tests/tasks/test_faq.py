"""Answers grounded in a FAQ: nearest entries before the chat, a person where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lcc.config.cards import decode
from lcc.core.errors import DataError, LccError
from lcc.stages.handover import Case, shares, threshold
from lcc.tasks.chat import handed_over
from lcc.tasks.faq import Grounding
from lcc.tasks.task import Task

FAQ = [
    ("When is the library open?", "From nine to six."),
    ("May I bring my dog?", "No animals."),
    ("How many books may I borrow?", "Ten, for four weeks, and no more."),
]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in FAQ))
    return str(path)


def user(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def test_the_nearest_entry_stands_first_before_the_conversation(file: str) -> None:
    grounding = decode(Grounding, {"file": file, "entries": 2, "max_words": 3})
    found = grounding.ground([{"role": "system", "content": "Be kind."}, *user("dogs in books?")])
    assert [one["role"] for one in found.messages] == ["system", "user"]
    said = found.messages[0]["content"]
    assert said.startswith("Be kind.\n\n")
    assert "Q: May I bring my dog?\nA: No animals." in said and "Ten, for four …" in said
    assert found.entries[0].answer in ("No animals.", FAQ[2][1])


def test_a_question_that_leans_on_the_one_before_is_looked_up_with_it(file: str) -> None:
    grounding = decode(Grounding, {"file": file, "entries": 1})
    entries, coverage = grounding.nearest_entries(["How many books may I borrow?", "And for how long?"])
    assert entries[0].answer.startswith("Ten") and coverage > 0.5
    assert grounding.nearest_entries(["", "zebra"])[0] == []


def test_a_person_takes_over_where_too_little_is_covered(file: str) -> None:
    grounding = decode(Grounding, {"file": file, "threshold": 0.6, "handover": "Wait, please."})
    assert grounding.ground(user("When is it open?")).handover is None
    assert grounding.ground(user("Why is the sky blue?")).handover == "Wait, please."
    assert grounding.ground(user("qwertz")).handover == "Wait, please."
    never = decode(Grounding, {"file": file})
    assert never.ground(user("qwertz")).handover is None
    assert "(nothing)" in never.ground(user("qwertz")).messages[0]["content"]


def test_a_task_hands_over_by_its_own_grounding(file: str) -> None:
    fields: dict[str, Any] = {"fields": ["turns"], "turns": "turns", "chat": True}
    task = decode(Task, {**fields, "grounding": {"file": file, "threshold": 0.9}})
    assert handed_over(task, {"turns": ["What about Mars?"]}) is not None
    assert handed_over(task, {"turns": ["May I bring my dog?", "No."]}) is None
    assert handed_over(decode(Task, fields), {"turns": ["What about Mars?"]}) is None


def test_a_faq_that_is_none_says_so(tmp_path: Path, file: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"q": 1}\n')
    with pytest.raises(DataError, match="entry 1 needs question and answer; it has q"):
        decode(Grounding, {"file": str(path)}).nearest_entries(["x"])
    path.write_text("")
    with pytest.raises(DataError, match="the FAQ holds no entries"):
        decode(Grounding, {"file": str(path)}).nearest_entries(["x"])
    with pytest.raises(LccError, match="no file"):
        decode(Grounding, {"file": str(tmp_path / "absent.jsonl")}).nearest_entries(["x"])
    with pytest.raises(Exception, match="message must say"):
        decode(Grounding, {"file": file, "message": "x"})
    with pytest.raises(Exception, match="give file"):
        decode(Grounding, {})


CASES = [Case(0.9, True, True), Case(0.8, True, True), Case(0.7, True, False),
         Case(0.5, True, True), Case(0.2, False, False), Case(0.1, False, False)]  # fmt: skip


def test_the_threshold_is_the_lowest_that_keeps_the_promise() -> None:
    assert threshold(CASES, 0.0) == 0.8
    assert threshold(CASES, 0.25) == 0.5
    assert threshold(CASES, 0.9) == 0.0
    assert threshold([Case(0.3, False, False)], 0.1) == 1.0


def test_what_a_threshold_does_is_counted_for_both_kinds_of_questions() -> None:
    found = shares(CASES, 0.5)
    assert found["answered_share"] == pytest.approx(4 / 6)
    assert found["wrong_share"] == pytest.approx(1 / 4)
    assert found["caught_share"] == 1.0 and found["lost_share"] == 0.0
    assert shares(CASES, 0.85)["lost_share"] == pytest.approx(3 / 4)


class Parrot:
    """A session that says `squawk` to whatever it is asked, and keeps what that was."""

    abilities: frozenset[str] = frozenset()
    context, free_slots = 512, 4

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.asked = tokenizer, []  # type: ignore[var-annotated]

    def start(self, request: Any) -> int:
        self.asked.append(self.tokenizer.decode(request.ids))
        return len(self.asked)

    def step(self) -> list[Any]:
        from lcc.inference.session import AnswerStep

        return [AnswerStep(len(self.asked), "squawk", (), "stop")]


@pytest.fixture
def parrot() -> Parrot:
    import yaml

    from lcc.config.yaml_files import packaged_file
    from lcc.models.sources import TokenizerRecipe, make_tokenizer

    path = packaged_file("model/tiny_chat.yaml")
    assert path is not None
    node = yaml.safe_load(path.read_text(encoding="utf-8"))["source"]["scratch"]["tokenizer"]
    return Parrot(make_tokenizer(decode(TokenizerRecipe, node)))


def test_a_terminal_chat_is_grounded_turn_by_turn(file: str, parrot: Any) -> None:
    from lcc.inference.conversation import Conversation
    from lcc.tasks.task import Decode, Sampling

    grounding = decode(Grounding, {"file": file, "threshold": 0.6, "handover": "A person comes."})
    chat = Conversation(parrot, Decode(max_new_tokens=4), Sampling(), grounding=grounding)
    assert "".join(chat.reply("When is it open?")) == "squawk"
    assert "A: From nine to six." in parrot.asked[0]
    assert "".join(chat.reply("Zebras on Mars? Say something.")) == "A person comes."
    assert len(parrot.asked) == 1 and chat.turns[-1]["content"] == "A person comes."


def test_rows_that_a_person_takes_over_never_reach_the_model(file: str, parrot: Any) -> None:
    from lcc.inference.batch import BatchInference, RowPrefetcher, numbered

    task = decode(
        Task,
        {
            "fields": ["turns"],
            "turns": "turns",
            "chat": True,
            "decode": {"max_new_tokens": 4},
            "grounding": {"file": file, "threshold": 0.6, "handover": "A person comes."},
        },
    )
    lines = ["May I bring my dog?", '{"turns": ["Hello.", "Hello.", "Why is the sky blue?"]}']
    said = {
        number: one
        for number, _, one in BatchInference(parrot, task).answers(RowPrefetcher(numbered(lines, task)))
    }
    assert said[0].output == "squawk" and not said[0].handed_over
    assert said[1].output == "A person comes." and said[1].facts["handed_over"]
    assert len(parrot.asked) == 1
