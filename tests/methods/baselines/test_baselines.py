"""What answers without a model: first words, the most frequent answer, the nearest question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lcc.config.cards import decode, find_card, names
from lcc.core.errors import DataError
from lcc.data.bm25 import Index, words_of
from lcc.methods.baselines import Baseline
from lcc.tasks.task import Task

TASK = decode(Task, {"fields": ["source", "target"], "template": "Q: {source}\nA:", "answer": " {target}"})
OF_PASSAGES = ("entry", "passage", "exclusive_frequency")  # need a FAQ, or rows with a context
TRAINING = [
    {"id": "1", "source": "How do I open a file?", "target": "Press the round button."},
    {"id": "2", "source": "Where is the key?", "target": "Beside the door."},
    {"id": "3", "source": "Where is the lamp?", "target": "Beside the door."},
]


def outputs(name: str, *sources: str, **options: Any) -> list[str]:
    rows = [{"id": str(i), "source": text, "target": "?"} for i, text in enumerate(sources)]
    found: list[str] = decode(find_card("baselines", name), options).outputs(TASK, TRAINING, rows)
    return found


@pytest.mark.parametrize("name", sorted(set(names("baselines")) - set(OF_PASSAGES)))
def test_every_baseline_answers_every_row_and_says_how(name: str) -> None:
    one = decode(find_card("baselines", name), {})
    assert isinstance(one, Baseline) and one.description
    assert len(outputs(name, "a", "b c", "")) == 3


def test_the_lead_is_the_text_as_it_begins() -> None:
    assert outputs("lead", "One two  three, four", "One", words=3) == ["One two  three,", "One"]
    assert outputs("lead", "打开文件夹，然后", words=4) == ["打开文件"]
    with pytest.raises(DataError, match=r"task.baseline.of: rows have no field 'title'"):
        outputs("lead", "One", of="title")


def test_the_majority_is_the_most_frequent_answer() -> None:
    assert outputs("majority", "x", "y") == ["Beside the door."] * 2


def test_the_nearest_question_gives_its_answer() -> None:
    said = outputs("nearest", "opening files", "the lamp", "qwertz")
    assert said == ["Press the round button.", "Beside the door.", "Press the round button."]


def test_bm25_is_that_of_its_formula() -> None:
    """Against the slow, obvious one: Lucene's idf, k1 = 1.5, b = 0.75."""
    import math

    texts = ["open the file", "open the window and the door", "close the file", ""]
    docs = [words_of(text) for text in texts]
    mean = sum(max(1, len(doc)) for doc in docs) / len(docs)

    def score(words: list[str], doc: list[str]) -> float:
        total = 0.0
        for word in words:
            df = sum(word in other for other in docs)
            idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
            tf = doc.count(word)
            total += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(doc) / mean))
        return total

    question = "open files"
    wanted = sorted(range(len(docs)), key=lambda i: -score(words_of(question), docs[i]))
    found = Index(texts).nearest(question, 4)
    assert [one.number for one in found] == [i for i in wanted if score(words_of(question), docs[i])]
    assert found[0].coverage == 1.0 and 0 < found[-1].coverage < 1
    headed = Index(texts, ["files", "", "open", ""])
    assert [one.coverage for one in headed.nearest(question, 1)] != [1.0]
    assert Index(["What is it?"]).nearest("What is it?", 1)[0].coverage == 0.0


def test_a_word_that_stands_nowhere_counts_against_every_text() -> None:
    index = Index(["open the file", "close the window"])
    (known,), (strange,) = (index.nearest(q, 1) for q in ("open file", "open file zebra"))
    assert known.coverage == 1.0 and strange.coverage < 0.8
    assert index.nearest("zebra", 1) == []


def test_the_passage_is_its_part_that_shares_most_with_the_question() -> None:
    row = {
        "id": "1",
        "source": "x",
        "target": "?",
        "question": "Where is the key?",
        "context": "A lamp glows. A key lies here.\nNobody knows.",
    }
    for unit, wanted in (("sentence", "A key lies here."), ("paragraph", "A lamp glows. A key lies here.")):
        one = decode(find_card("baselines", "passage"), {"unit": unit})
        assert one.outputs(TASK, [], [row]) == [wanted]
    with pytest.raises(DataError, match="rows have no field 'context'"):
        decode(find_card("baselines", "passage"), {}).outputs(TASK, [], TRAINING)


def test_a_gap_is_filled_with_the_most_frequent_word_that_was_not_asked() -> None:
    one = decode(find_card("baselines", "exclusive_frequency"), {})
    context = "Editors edit the text. This editor shows text and texts, text over the wire."
    row = {"id": "1", "question": 'What is ____ in "____ editor"?', "context": context}
    empty = {**row, "context": "The editor of the"}
    assert one.outputs(TASK, [], [row, empty]) == ["text", ""]
    first = {**row, "context": "Zebras and lions over lions or a zebra: editors"}
    assert one.outputs(TASK, [], [first]) == ["Zebras"]
    with pytest.raises(DataError, match="rows have no field 'context'"):
        one.outputs(TASK, [], TRAINING)


def test_an_entry_needs_a_faq_to_be_taken_from(tmp_path: Path) -> None:
    one = decode(find_card("baselines", "entry"), {})
    with pytest.raises(DataError, match=r"entry needs task\.grounding"):
        one.outputs(TASK, [], TRAINING)
    (tmp_path / "faq.jsonl").write_text('{"question": "Open a file?", "answer": "Press."}\n')
    task = decode(
        Task,
        {
            "fields": ["turns"],
            "turns": "turns",
            "chat": True,
            "grounding": {"file": str(tmp_path / "faq.jsonl")},
        },
    )
    rows = [{"turns": ["opening files"]}, {"turns": ["qwertz"]}]
    assert one.outputs(task, [], rows) == ["Press.", ""]
