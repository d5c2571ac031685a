"""Requests that join and leave at any turn get what they get alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import speakers
import torch
from speakers import answered, expected, ids_of, prompts, session, text_of

from lcc.core.errors import DataError
from lcc.inference.session import AnswerStep, Request
from lcc.tasks.task import Sampling

FAMILIES = ["llama", "gemma3", "gpt2", "t5", "marian", "bart"]


def asked(rows: list[list[int]], limit: int = 20, **options: Any) -> list[Request]:
    return [Request(tuple(row), limit, **options) for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots, arriving", [(1, 1), (3, 1), (4, 2), (16, 100)])
def test_answers_are_evaluations_own(family: str, slots: int, arriving: int) -> None:
    module, rows = getattr(speakers, family)(), prompts()
    wanted = expected(module, rows)
    running = session(module, slots=slots)
    assert "continuous" in running.abilities
    told = answered(running, asked(rows), arriving=arriving)
    assert [ids_of(steps) for steps in told] == [one.ids for one in wanted]
    assert [text_of(steps).strip() for steps in told] == [one.text for one in wanted]
    assert [steps[-1].finish == "stop" for steps in told] == [one.finished for one in wanted]
    assert len({one.ids for one in wanted}) > 5
    assert running.free_slots == slots


def test_each_turn_gives_everybody_a_token() -> None:
    running = session(speakers.llama(), slots=4)
    handles = [running.start(request) for request in asked(prompts(3))]
    assert sorted(step.handle for step in running.step()) == handles
    handles.append(running.start(asked(prompts(1))[0]))
    assert sorted(step.handle for step in running.step()) == handles


def test_who_is_dropped_says_no_more_and_others_say_the_same() -> None:
    module, rows = speakers.llama(), prompts(5)
    wanted = expected(module, rows)
    running = session(module, slots=5)
    handles = [running.start(request) for request in asked(rows)]
    told: dict[int, list[AnswerStep]] = {handle: [] for handle in handles}
    for turn in range(20):
        for step in running.step():
            told[step.handle].append(step)
        if turn == 2:
            running.drop(handles[1])
            running.drop(99)
    assert len(ids_of(told[handles[1]])) == 3
    for handle, one in zip(handles, wanted, strict=True):
        assert handle == handles[1] or ids_of(told[handle]) == one.ids


@pytest.mark.parametrize("family", ["llama", "marian"])
def test_beams_are_evaluations_own_while_others_run(family: str) -> None:
    module, rows = getattr(speakers, family)(), prompts(4)
    wanted = expected(module, rows, num_beams=3)
    greedy = expected(module, rows)
    running = session(module)
    mixed = asked(rows, num_beams=3) + asked(rows)
    told = answered(running, mixed, arriving=1)
    assert [ids_of(steps) for steps in told] == [one.ids for one in wanted + greedy]


def test_an_unknown_kind_of_memory_is_answered_request_by_request() -> None:
    module, rows = speakers.mamba(), prompts(4)
    wanted = expected(module, rows)
    running = session(module)
    assert "continuous" not in running.abilities
    told = answered(running, asked(rows))
    assert [ids_of(steps) for steps in told] == [one.ids for one in wanted]
    with pytest.raises(DataError, match="cannot be combined with temperature"):
        running.start(asked(rows, sampling=Sampling(temperature=1.0))[0])


def test_stop_strings_end_an_answer_and_are_never_shown() -> None:
    module, rows = speakers.gpt2(), prompts(8)
    free = expected(module, rows)
    word = "5\x19"
    told = answered(session(module), asked(rows, stop=(word, "never")), arriving=1)
    for steps, one in zip(told, free, strict=True):
        assert text_of(steps).strip() == one.text.partition(word)[0].strip()
        assert word not in text_of(steps)
    assert sum(steps[-1].finish == "stop" for steps in told) > sum(one.finished for one in free)


def test_whoever_measures_goes_on_past_every_end() -> None:
    module, rows = speakers.gpt2(), prompts(8)
    free = [ids_of(steps) for steps in answered(session(module), asked(rows))]
    module.generation_config.eos_token_id = free[0][2]
    ended = [ids_of(steps) for steps in answered(session(module), asked(rows))]
    assert len(ended[0]) <= 2
    told = answered(session(module), asked(rows, ignore_ends=True))
    assert [ids_of(steps) for steps in told] == free


def test_a_seed_repeats_and_another_differs_in_any_company() -> None:
    module, rows = speakers.llama(), prompts(6)
    options = {"sampling": Sampling(temperature=1.5, top_k=40, top_p=0.9)}
    requests = [Request(tuple(row), 12, seed=i, **options) for i, row in enumerate(rows)]  # type: ignore[arg-type]
    together = [ids_of(steps) for steps in answered(session(module), requests)]
    one_by_one = [ids_of(steps) for steps in answered(session(module, slots=2), requests)]
    assert together == one_by_one
    others = [Request(tuple(row), 12, seed=i + 50, **options) for i, row in enumerate(rows)]  # type: ignore[arg-type]
    assert [ids_of(steps) for steps in answered(session(module), others)] != together


def test_draws_follow_the_shares_that_the_model_gives() -> None:
    module, row = speakers.llama(initializer_range=0.1), [1, 9, 30]
    with torch.no_grad():
        shares = module(torch.tensor([row])).logits[0, -1].div(0.5).softmax(-1)
    values, ids = shares.topk(4)
    wanted = dict(zip(ids.tolist(), (values / values.sum()).tolist(), strict=True))
    requests = [
        Request(tuple(row), 1, seed=i, sampling=Sampling(temperature=0.5, top_k=4)) for i in range(2000)
    ]
    told = answered(session(module, slots=200), requests)
    counts = Counter(ids_of(steps)[0] for steps in told if ids_of(steps))
    counts.update({2: 2000 - counts.total()} if counts.total() < 2000 else {})
    assert set(counts) <= set(wanted)
    for token, share in wanted.items():
        assert abs(counts[token] / 2000 - share) < 0.05


def test_top_p_keeps_the_smallest_share_that_reaches_it() -> None:
    module, row = speakers.llama(), [1, 9, 30]
    with torch.no_grad():
        shares = module(torch.tensor([row])).logits[0, -1].softmax(-1).sort(descending=True)
    kept = int((shares.values.cumsum(-1) < 0.6).sum()) + 1
    allowed = set(shares.indices[:kept].tolist())
    requests = [
        Request(tuple(row), 1, seed=i, sampling=Sampling(temperature=1.0, top_p=0.6)) for i in range(300)
    ]
    told = answered(session(module, slots=100), requests)
    assert {ids_of(steps)[0] for steps in told if ids_of(steps)} <= allowed


def test_a_top_p_of_nearly_nothing_keeps_the_likeliest() -> None:
    module, row = speakers.llama(), [1, 9, 30]
    with torch.no_grad():
        best = int(module(torch.tensor([row])).logits[0, -1].argmax())
    request = Request(
        tuple(row), 1, seed=1, sampling=Sampling(temperature=1.0, top_p=5e-324)
    )  # zero in float32
    assert ids_of(answered(session(module), [request])[0]) in ((best,), ())


def test_likelihoods_are_those_of_the_unchanged_distribution() -> None:
    module, row = speakers.llama(), prompts(1)[0]
    request = Request(tuple(row), 5, logprobs=3, sampling=Sampling(repetition_penalty=1.3))
    tokens = [t for s in answered(session(module), [request])[0] for t in s.tokens]
    ids = list(row)
    for token in tokens:
        with torch.no_grad():
            logs = module(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(logs[token.id]), abs=1e-4)
        assert [i for i, _ in token.top] == logs.topk(3).indices.tolist()
        ids.append(token.id)


def test_a_penalty_is_the_librarys_own() -> None:
    module, rows = speakers.llama(), prompts(5)
    told = answered(session(module), asked(rows, 12, sampling=Sampling(repetition_penalty=1.8)), arriving=1)
    for row, steps in zip(rows, told, strict=True):
        with torch.no_grad():
            whole = module.generate(
                torch.tensor([row]), do_sample=False, max_new_tokens=12, repetition_penalty=1.8
            )[0].tolist()
        new = whole[len(row) :]
        assert list(ids_of(steps)) == (new[: new.index(2)] if 2 in new else new)


def test_an_answer_ends_where_the_context_does() -> None:
    running = session(speakers.llama(), slots=1, context=20)
    row = prompts(1)[0][:5]
    steps = answered(running, asked([row], limit=500))[0]
    assert len(ids_of(steps)) == 20 - len(row)
    with pytest.raises(DataError, match="takes 1 to 19"):
        running.start(asked([[1] * 20])[0])
    with pytest.raises(DataError, match="takes 1 to 19"):
        running.start(asked([[]])[0])


def test_long_prompts_join_short_ones() -> None:
    module = speakers.gemma3()
    rows = [prompts(1)[0], *prompts(3, longest=150), prompts(2)[1]]
    wanted = expected(module, rows, max_new_tokens=60)
    told = answered(session(module, slots=3), asked(rows, 60), arriving=1)
    assert [ids_of(steps) for steps in told] == [one.ids for one in wanted]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_and_vectors_are_those_of_a_row_alone(family: str) -> None:
    module, rows = getattr(speakers, family)(), prompts(5)
    running = session(module)
    for row, logits, vector in zip(rows, running.logits(rows), running.embed(rows), strict=True):
        with torch.no_grad():
            output = module(torch.tensor([row]), output_hidden_states=True)
        assert np.allclose(logits, output.logits[0].numpy(), atol=1e-4)
        assert np.allclose(vector, output.hidden_states[-1][0].mean(0).numpy(), atol=1e-4)


def test_a_classifier_reads_and_does_not_write() -> None:
    module, rows = speakers.bert(num_labels=3), prompts(5)
    running = session(module)
    for row, logits in zip(rows, running.logits(rows), strict=True):
        with torch.no_grad():
            assert np.allclose(logits, module(torch.tensor([row])).logits[0].numpy(), atol=1e-4)
    with pytest.raises(DataError, match="writes no answers"):
        running.start(asked(rows)[0])
