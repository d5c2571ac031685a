"""A prompt that begins as an earlier one did says what it says when it is read whole."""

from __future__ import annotations

from typing import Any

import pytest
import speakers
import torch
from speakers import answered, expected, ids_of, session

from lcc.inference.engine import InProcessSession
from lcc.inference.kv_cache import MOST_KEPT, PrefixCache
from lcc.inference.session import Request

DECODERS = ["llama", "gemma3", "gpt2"]
HEAD = [1, *range(10, 34)]


def counted(running: InProcessSession) -> list[int]:
    """How many columns each forward reads, told as they come."""
    found = list[int]()
    running.module.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return found


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("slots, arriving", [(1, 1), (3, 1), (4, 2), (16, 100)])
def test_answers_are_what_they_are_without(family: str, slots: int, arriving: int) -> None:
    module = getattr(speakers, family)()
    tails = [[40], [40, 41, 42], [7] * 9, [], [40, 41, 43, 44], [50, 51], [7] * 9 + [8], [12], [40]]
    rows = [HEAD[: len(HEAD) - 2 * i] + tail for i, tail in enumerate(tails)]
    rows += [rows[2], [1, 9, 30], [*HEAD, 40, 41, 42, 43]]
    wanted = [one.ids for one in expected(module, rows)]
    running = session(module, slots=slots, prefix_mb=1)
    read = counted(running)
    told = answered(running, [Request(tuple(row), 20) for row in rows], arriving=arriving)
    assert [ids_of(steps) for steps in told] == wanted
    if arriving == 1:
        assert sum(n for n in read if n > 1) < sum(map(len, rows)) / 2
        again = answered(running, [Request(tuple(row), 20) for row in rows], arriving=1)
        assert [ids_of(steps) for steps in again] == wanted


@pytest.mark.parametrize("family", DECODERS)
def test_a_conversation_reads_only_what_is_new(family: str) -> None:
    module, said = getattr(speakers, family)(), list(HEAD)
    running = session(module, prefix_mb=1)
    read = counted(running)
    for turn in range(4):
        [steps] = answered(running, [Request(tuple(said), 6)])
        assert ids_of(steps) == expected(module, [said], max_new_tokens=6)[0].ids
        if turn:
            assert read[0] <= 4  # what was just said but not read, the end, two of the user
        read.clear()
        said += [*ids_of(steps), 60 + turn, 70 + turn]


def test_nothing_is_kept_unless_asked() -> None:
    running = session(speakers.llama())
    read = counted(running)
    answered(running, [Request(tuple(HEAD), 4)])
    answered(running, [Request(tuple(HEAD), 4)])
    assert [n for n in read if n > 1] == [len(HEAD)] * 2


def test_the_longest_unused_is_forgotten_first() -> None:
    def layers(num: int) -> Any:
        return [(torch.zeros(1, num, 2), torch.zeros(1, num, 2))]

    known = PrefixCache(budget=16 * 90)  # 90 tokens of two by two floats
    first, second, third = ([i, *range(100, 129)] for i in (1, 2, 3))
    for ids in (first, second, third):
        known.keep(ids, layers(30))
    assert known.bytes == 16 * 90
    kept, shared = known.longest([*first, 5])
    assert kept is not None and shared == 30
    known.used(kept)
    known.keep([4, *range(29)], layers(30))
    assert [known.longest([*ids, 5])[1] for ids in (first, second, third)] == [30, 0, 30]
    known.keep([*first, 5, 6], layers(32))
    assert known.bytes == 16 * (32 + 30)  # in place of what it goes on from; one more had to go
    assert known.longest([*third, 5])[1] == 0
    known.keep([9, *range(200)], layers(201))  # larger than the budget
    assert known.bytes == 16 * (32 + 30)
    for i in range(MOST_KEPT + 5):
        known.keep([i, *range(7)], [])
    assert known.longest([4, *range(7), 1])[1] == 0
    assert known.longest([5, *range(7), 1])[1] == 8


def test_the_last_token_is_always_read_and_a_few_are_not_worth_a_copy() -> None:
    known = PrefixCache(budget=1)
    known.keep(range(20), [])
    assert known.longest(list(range(20)))[1] == 19
    assert known.longest(list(range(8)))[1] == 0
    assert known.longest(list(range(9)))[1] == 8
    assert known.longest([0, 1, 2, 3, 4, 5, 6, 8, 9, 10])[1] == 0
