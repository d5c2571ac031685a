"""Leases: one owner at a time, whoever dies, sleeps or races."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from store_processes import process

from lcc.store.locks import STALE_SECONDS, Lease, Leases, Owner

KEY = "ab" * 32
HOLD = f"lease = Leases(root).try_acquire({KEY!r}); say('held' if lease else 'refused'); wait()"
GRAB = """
say("ready")
wait()
leases = Leases(root)
held = {key: leases.try_acquire(key) for key in sorted(leases_keys())}
say(" ".join(key for key, lease in held.items() if lease))
wait()
"""


def acquire(leases: Leases, key: str = KEY) -> Lease:
    lease = leases.try_acquire(key)
    assert lease is not None
    return lease


def foreign(root: Path, key: str, *, seconds_ago: float) -> Path:
    """A lease that a process on another host took, with its last heartbeat that long ago."""
    file = root / key / Owner("elsewhere", "1", 4711, "token").name
    file.parent.mkdir(parents=True)
    file.touch()
    then = file.stat().st_mtime - seconds_ago
    os.utime(file, (then, then))
    return file


def test_a_lease_has_one_owner_and_is_gone_when_released(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    lease = acquire(leases)
    assert leases.try_acquire(KEY) is None
    assert leases.holder(KEY) == lease.owner
    assert str(leases.holder(KEY)).endswith(f":{os.getpid()}")
    lease.release()
    assert leases.holder(KEY) is None
    assert list(tmp_path.iterdir()) == []
    acquire(leases).release()


def test_another_process_is_refused_while_we_hold(tmp_path: Path) -> None:
    lease = acquire(Leases(tmp_path))
    with process(HOLD, tmp_path) as other:
        assert other.heard() == "refused"
    lease.release()


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    with process(HOLD, tmp_path) as other:
        assert other.heard() == "held"
        assert leases.try_acquire(KEY) is None
        other.popen.kill()
        # Dead but not reaped, as under a container's first process that never waits.
        os.waitid(os.P_PID, other.popen.pid, os.WEXITED | os.WNOWAIT)
        acquire(leases).release()


def test_a_lease_from_another_host_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    foreign(tmp_path, "fresh", seconds_ago=STALE_SECONDS / 2)
    foreign(tmp_path, "stale", seconds_ago=STALE_SECONDS + 1)
    assert leases.try_acquire("fresh") is None
    assert str(leases.holder("fresh")) == "elsewhere:4711"
    acquire(leases, "stale").release()


def test_our_own_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(tmp_path, KEY, seconds_ago=1)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert Leases(tmp_path).try_acquire(KEY) is None


@pytest.mark.parametrize("state", ["stale", "free"])
def test_of_several_takers_exactly_one_wins(tmp_path: Path, state: str) -> None:
    keys = {f"{n:02d}" for n in range(40)}
    if state == "stale":
        for key in keys:
            foreign(tmp_path, key, seconds_ago=STALE_SECONDS + 60)
    code = GRAB.replace("leases_keys()", repr(keys))
    with ExitStack() as stack:
        takers = [stack.enter_context(process(code, tmp_path)) for _ in range(4)]
        assert [taker.heard() for taker in takers] == ["ready"] * 4
        for taker in takers:
            taker.go()
        won = [taker.heard().split() for taker in takers]
    assert sorted(key for keys_won in won for key in keys_won) == sorted(keys)


def test_an_owner_that_slept_too_long_knows_and_disturbs_nobody(tmp_path: Path) -> None:
    sleeper = acquire(Leases(tmp_path))
    taker = acquire(Leases(tmp_path, stale_seconds=-1))
    assert not sleeper.is_held()
    sleeper.release()
    assert taker.is_held()
    assert Leases(tmp_path).try_acquire(KEY) is None
    taker.release()


def test_the_heartbeat_goes_on_while_we_hold(tmp_path: Path) -> None:
    lease = acquire(Leases(tmp_path, beat_seconds=0.001))
    file = tmp_path / KEY / lease.owner.name
    os.utime(file, (0, 0))
    deadline = time.monotonic() + 10
    while file.stat().st_mtime == 0 and time.monotonic() < deadline:
        os.sched_yield()
    assert file.stat().st_mtime > 0
    lease.release()


def test_a_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    held = acquire(leases, "held")
    foreign(tmp_path, "fresh", seconds_ago=1)
    foreign(tmp_path, "stale", seconds_ago=STALE_SECONDS + 1)
    for name in (".draft", ".young"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".draft", (0, 0))
    leases.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {"held", "fresh", ".young"}
    assert held.is_held()
    held.release()
