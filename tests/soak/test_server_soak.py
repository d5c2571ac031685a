"""The server under malformed requests, slow crowds and long mixed traffic, told in figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from lengths_of_soak import IS_LONG

MB = 2**20


@pytest.fixture(scope="module")
def found(harness: Callable[..., dict[str, Any]], amount: Callable[[int, int], int]) -> dict[str, Any]:
    """Everything, one after another, from one server."""
    plan = {
        "malformed": [amount(10_000, 120)],
        "slow": [amount(500, 30), amount(60, 1)],
        "throughput": [16, amount(30, 1)],
        "endurance": [amount(1200, 8)],
    }
    return harness("server_load.py", json.dumps(plan))


def test_no_malformed_request_is_the_server_s_fault(found: dict[str, Any], note: Callable[..., None]) -> None:
    told = found["malformed"]
    note("malformed requests", **told["statuses"], status_5xx=told["num_5xx"])
    assert told["num_5xx"] == 0 and told["honest_after"] == 200


def test_slow_connections_keep_nobody_else_waiting(found: dict[str, Any], note: Callable[..., None]) -> None:
    note("slow connections", **found["slow"])
    assert not IS_LONG or (found["slow"]["ratio"] < 2 and found["slow"]["cut"] > 500)


def test_many_clients_share_the_engine_s_turns(found: dict[str, Any], note: Callable[..., None]) -> None:
    note("throughput", **found["throughput"])
    assert not IS_LONG or found["throughput"]["ratio"] >= 4


def test_memory_stays_flat(found: dict[str, Any], note: Callable[..., None]) -> None:
    told = found["endurance"]
    note("endurance", **told)
    assert "malformed 5xx" not in told
    assert not IS_LONG or told["growth_bytes"] < 16 * MB
