"""Answers grounded in a FAQ: nearest entries before the chat, a person where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lcc.core.decode import decode
from lcc.core.errors import DataError, LccError
from lcc.parts.chatting import handed_over
from lcc.parts.grounding import Grounding
from lcc.parts.task import Task
from lcc.stages.handover import Case, shares, threshold

FAQ = [("When is the library open?", "From nine to six."), ("May I bring my dog?", "No animals."),
       ("How many books may I borrow?", "Ten, for four weeks, and no more.")]  # fmt: skip


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
    entries, coverage = grounding.found(["How many books may I borrow?", "And for how long?"])
    assert entries[0].answer.startswith("Ten") and coverage > 0.5
    assert grounding.found(["", "zebra"])[0] == []


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
        decode(Grounding, {"file": str(path)}).found(["x"])
    path.write_text("")
    with pytest.raises(DataError, match="the FAQ holds no entries"):
        decode(Grounding, {"file": str(path)}).found(["x"])
    with pytest.raises(LccError, match="no file"):
        decode(Grounding, {"file": str(tmp_path / "absent.jsonl")}).found(["x"])
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
