"""/openapi.json is true, says schemathesis; and malformed requests are no fault of the server."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import malforming
import pytest
import schemathesis
import served_models as serving
from hypothesis import HealthCheck, Phase, given, seed, settings
from running_servers import Running
from schemathesis import GenerationMode

NUM_MALFORMED = 300
NUM_EXAMPLES = 15


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from running_servers import run

    # Room for any prompt, and short answers, so that what schemathesis asks for is soon answered.
    folder = serving.chatter(tmp_path_factory.mktemp("bounded") / "m", context=8192)
    with run(folder, max_tokens=8, max_choices=2, max_inputs=4, read_seconds=0.5) as running:
        yield running


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_server_does_what_its_description_says(bounded: Running, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{bounded.url}/openapi.json")
    num_operations = 0
    results: list[Any] = list(schema.get_all_operations())
    for operation in [result.ok() for result in results]:
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # without parameters there is nothing to get wrong
        num_operations += 1

        @seed(1)
        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            database=None,
            derandomize=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def examined(case: Any) -> None:
            case.call_and_validate()

        examined()
    assert num_operations == (6 if mode is GenerationMode.POSITIVE else 3)


def test_nothing_malformed_is_answered_with_5xx(bounded: Running) -> None:
    dice = random.Random(1)
    seen = Counter(malforming.status(bounded.port, malforming.request(dice)) for _ in range(NUM_MALFORMED))
    assert all(number < 500 for number in seen), seen
    assert len([number for number in seen if number >= 400]) >= 6, seen
    with bounded.client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
    bounded.until(lambda: not bounded.served.engine_thread.active)
