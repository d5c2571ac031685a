"""What preview reckons: nothing for finished steps, more for more work, the card's own figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcc.pipeline.estimate import STATE_BYTES, Estimate, disk_needed, estimate
from lcc.pipeline.planner import pipeline_of
from lcc.store.store import Store


@pytest.fixture
def reckon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> dict[str, Estimate]:
        return estimate(pipeline_of(list(words), "preview"), Store(tmp_path / "runs"))

    return call


def test_twice_the_training_is_reckoned_longer(reckon) -> None:
    once = reckon("+recipe=mt_en_zh_small")["finetune"]
    twice = reckon("+recipe=mt_en_zh_small", "stages.finetune.epochs=2")["finetune"]
    assert once.seconds < twice.seconds < 2 * once.seconds


def test_training_all_weights_needs_more_memory_than_an_adapter(reckon) -> None:
    adapter = reckon("+recipe=mt_en_zh_small")["finetune"]
    full = reckon("+recipe=mt_en_zh_small", "method=full")["finetune"]
    assert full.memory_bytes > adapter.memory_bytes + 10 * 268_098_176


def test_an_average_of_all_weights_is_reckoned_as_one_more_copy(reckon) -> None:
    words = "+recipe=mt_en_zh_small", "method=full"
    plain, averaged = reckon(*words), reckon(*words, "stages.finetune.ema.decay=0.99")
    more = averaged["finetune"].memory_bytes - plain["finetune"].memory_bytes
    assert more == 4 * 268_098_176


def test_a_gemma_in_bfloat16_is_reckoned_at_its_size(reckon) -> None:
    assert reckon("+recipe=mt_en_zh_small")["base"].disk_bytes == 2 * 268_098_176


def test_fewer_samples_are_reckoned_shorter(reckon) -> None:
    all_rows = reckon("+recipe=mt_en_zh")["heal"]
    few = reckon("+recipe=mt_en_zh", "plan.heal.samples=100")["heal"]
    assert few.seconds < all_rows.seconds


def test_room_for_the_states_of_a_full_training_is_reckoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "runs")

    def needed(*words: str) -> int:
        return disk_needed(pipeline_of(["+recipe=mt_en_zh_small", *words], "preview"), store)

    # Two generations and one in the making, of weights, the best of them, and Adam's moments.
    assert needed("method=full") > needed() + 3 * 0.9 * 268_098_176 * STATE_BYTES
