"""Answers that are pieces of a passage: labels, windows, and the best span over all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from lcc.config.cards import decode
from lcc.config.yaml_files import config_roots
from lcc.evaluation.score import _best, extracted
from lcc.models.sources import Scratch, make_module, make_tokenizer
from lcc.tasks.extractive_qa import PassageWindow, passage_windows
from lcc.tasks.task import Task
from lcc.training.batches import collate, num_targets
from lcc.training.loss import extract_logits, summed_loss

PASSAGE = "The key hangs beside the door. The dog sleeps. The lamp is green, as all of them are."
TASK = decode(Task, {
    "head": "extract", "fields": ["question", "context", "answer"], "template": "{question}",
    "answer": "{answer}", "passage": "context", "decode": {"max_new_tokens": 40},
})  # fmt: skip


def row(answer: str, **more: Any) -> dict[str, Any]:
    return {"id": "1", "question": "What is it?", "context": PASSAGE, "answer": answer, **more}


@pytest.fixture(scope="module")
def scratch() -> Scratch:
    path = next(r / "model/tiny_bert.yaml" for r in config_roots() if (r / "model/tiny_bert.yaml").is_file())
    return decode(Scratch, yaml.safe_load(path.read_text(encoding="utf-8"))["source"]["scratch"])


@pytest.fixture(scope="module")
def tokenizer(scratch: Scratch) -> Any:
    return make_tokenizer(scratch.tokenizer)


@pytest.mark.parametrize("answer", ["beside the door", "The key", "green, as all of them are."])
@pytest.mark.parametrize("length", [40, 60, 300])
def test_the_labels_are_the_answer_whatever_the_window(tokenizer: Any, answer: str, length: int) -> None:
    example = TASK.encode(row(answer), tokenizer, max_length=length)
    assert len(example.input_ids) <= length and example.kinds is not None
    if not example.labels:
        assert length == 40  # no window of so few tokens holds it whole
        return
    first, last = example.labels  # type: ignore[misc]
    assert tokenizer.decode(example.input_ids[first : last + 1]).strip() == answer
    assert example.kinds[first] == 1 and example.kinds[1] == 0


def test_the_answer_is_where_the_row_says(tokenizer: Any) -> None:
    second = PASSAGE.index("The dog")
    example = TASK.encode(row("The", answer_start=second), tokenizer, max_length=300)
    window = next(passage_windows(TASK, row("The"), tokenizer, 300))
    assert isinstance(example.labels, list)
    assert window.places[example.labels[0] - window.first][0] == second


def test_windows_overlap_and_leave_nothing_out(tokenizer: Any) -> None:
    found = list(passage_windows(TASK, row("x"), tokenizer, 50))
    assert len(found) > 1 and all(len(window.ids) <= 50 for window in found)
    seen = {place for window in found for place in window.places}
    (whole,) = passage_windows(TASK, row("x"), tokenizer, 500)
    assert seen == set(whole.places)
    assert set(found[0].places) & set(found[1].places)


def test_the_best_span_is_that_of_the_slow_search() -> None:
    draws = torch.Generator().manual_seed(0)
    window = PassageWindow([0] * 12, [0] * 12, 3, [(i, i + 1) for i in range(8)])
    for most in (1, 3, 8):
        starts, ends = torch.randn(12, generator=draws), torch.randn(12, generator=draws)
        slow = max(
            (float(starts[3 + i] + ends[3 + j]), i, j + 1)
            for i in range(8)
            for j in range(i, min(8, i + most))
        )
        assert _best(starts, ends, window, most) == pytest.approx(slow)


def test_a_few_steps_teach_an_encoder_to_mark_answers(scratch: Scratch, tokenizer: Any) -> None:
    rows = [row("beside the door", question="Where?"), row("green", question="Which colour?")]
    examples = [TASK.encode(one, tokenizer, max_length=200) for one in rows]
    assert all(num_targets(example, "extract") == 2 for example in examples)
    model = make_module(scratch, "extract", tokenizer)
    batch = collate(examples, head="extract", pad=0, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = summed_loss(extract_logits(model)(batch), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said = extracted(model, tokenizer, TASK, rows, batch_size=2, advance=lambda n: None)
    assert said == ["beside the door", "green"]


def test_padding_is_never_an_answer(scratch: Scratch, tokenizer: Any) -> None:
    model = make_module(scratch, "extract", tokenizer)
    short = TASK.encode({**row("key"), "context": "The key."}, tokenizer, max_length=200)
    long = TASK.encode(row("key"), tokenizer, max_length=200)
    alone = collate([short], head="extract", pad=0, device="cpu")
    both = collate([short, long], head="extract", pad=0, device="cpu")
    with torch.no_grad():
        one, two = extract_logits(model)(alone), extract_logits(model)(both)
    num = len(short.input_ids)
    assert torch.allclose(one[0], two[0, :num], atol=1e-5)
    assert bool((two[0, num:] < -1e3).all())
