"""Collection: frees what nobody needs, never what somebody does, and counts bytes honestly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcc.core.errors import IntegrityError, RecipeError
from lcc.store import gc
from lcc.store.artifact import Artifact, Work
from lcc.store.gc import disk_bytes
from lcc.store.store import Store, resolve

BASE, TUNED, LOOSE = "ab" * 32, "abcd" * 16, "ef" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def make(store: Store, key: str, name: str, *, weights: str = "x", parent: Path | None = None) -> Artifact:
    reuse = [parent] if parent else []
    with store.claim(key) as work:
        assert isinstance(work, Work)
        (work.path / "weights").write_text(weights)
        return store.publish(work, report={"name": name, "kind": name}, reuse=reuse)


def note_run(store: Store, run: str, **steps: str) -> None:
    folder = store.root / run
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"steps": [{"name": name, "key": key} for name, key in steps.items()]}
    (folder / "run.json").write_text(json.dumps(facts))
    (store.root / "last").write_text(f"{run}\n")


def keys(store: Store) -> set[str]:
    return {artifact.key for artifact in store.artifacts()}


def test_what_no_run_refers_to_is_freed_and_the_rest_stays(store: Store) -> None:
    for key, name in ((BASE, "base"), (TUNED, "finetune"), (LOOSE, "eval")):
        make(store, key, name)
    note_run(store, "tiny-1", base=BASE)
    store.pin(TUNED)
    freed = gc.collect(store, dry_run=False)
    assert [(f.place, f.key, f.name) for f in freed] == [("store", LOOSE, "eval")]
    assert keys(store) == {BASE, TUNED}
    store.unpin(TUNED)
    assert [f.key for f in gc.collect(store, dry_run=False)] == [TUNED]
    assert gc.collect(store, dry_run=False) == []


def test_a_dry_run_says_the_same_and_frees_nothing(store: Store) -> None:
    parent = make(store, BASE, "base", weights="1" * 1000)
    make(store, TUNED, "finetune", weights="1" * 1000, parent=parent.path)
    make(store, LOOSE, "eval")
    planned = gc.collect(store, dry_run=True)
    assert keys(store) == {BASE, TUNED, LOOSE}
    assert gc.collect(store, dry_run=False) == planned
    assert keys(store) == set()


def test_the_bytes_freed_are_those_that_the_disk_gets_back(store: Store) -> None:
    parent = make(store, BASE, "base", weights="1" * 1000)
    make(store, TUNED, "finetune", weights="1" * 1000, parent=parent.path)
    note_run(store, "tiny-1", base=BASE)
    before = disk_bytes([store.root / "store"])
    freed = gc.collect(store, dry_run=False)
    assert [f.key for f in freed] == [TUNED]
    assert freed[0].bytes == before - disk_bytes([store.root / "store"])
    assert freed[0].bytes < 1000
    assert store.find(BASE) is not None


def test_what_is_in_use_is_never_freed(store: Store) -> None:
    make(store, LOOSE, "eval")
    lease = store.leases.try_acquire(LOOSE)
    assert lease is not None
    assert gc.collect(store, dry_run=False) == []
    lease.release()
    assert len(gc.collect(store, dry_run=False)) == 1


def test_unfinished_work_is_freed_unless_it_is_in_use_or_a_run_will_resume_it(store: Store) -> None:
    for key in (BASE, TUNED):
        with store.claim(key) as work:
            assert isinstance(work, Work)
            (work.path / "partial").write_text("123")
    note_run(store, "tiny-1", base=BASE)
    with store.claim(LOOSE):
        freed = gc.collect(store, dry_run=False)
    assert [(f.place, f.key, f.bytes) for f in freed] == [("work", TUNED, 3)]
    assert {p.name for p in (store.root / "work").iterdir()} == {BASE, LOOSE}


def test_what_was_set_aside_is_freed(store: Store) -> None:
    (make(store, BASE, "base").path / "weights").write_text("y")
    store.warn = lambda sentence: None
    store.find(BASE)
    assert [(f.place, f.key) for f in gc.collect(store, dry_run=False)] == [("damaged", BASE)]
    assert list((store.root / "damaged").iterdir()) == []


def test_a_run_that_cannot_be_read_stops_the_collection(store: Store) -> None:
    make(store, LOOSE, "eval")
    note_run(store, "tiny-1")
    (store.root / "tiny-1" / "run.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"tiny-1/run\.json cannot be read"):
        gc.collect(store, dry_run=False)
    assert keys(store) == {LOOSE}


def test_usage_names_the_users_and_what_is_shared(store: Store) -> None:
    parent = make(store, BASE, "base", weights="1" * 1000)
    make(store, TUNED, "finetune", weights="1" * 1000, parent=parent.path)
    note_run(store, "tiny-1", base=BASE)
    store.pin(TUNED)
    base, tuned = sorted(gc.usage(store), key=lambda entry: entry.name)
    assert base.used_by == ["tiny-1/base"]
    assert (base.pinned, tuned.pinned) == (False, True)
    assert base.bytes - base.own_bytes == 1000


@pytest.mark.parametrize("word", ["finetune", "tiny-1/finetune", "abcda", TUNED])
def test_an_artifact_answers_to_step_run_and_step_or_key(store: Store, word: str) -> None:
    make(store, BASE, "base")
    make(store, TUNED, "finetune")
    note_run(store, "tiny-1", base=BASE, finetune=TUNED)
    assert resolve(store, word) == TUNED


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ab", "'ab' is no step of the last run, and no key in the store starts with it"),
        ("finetun", "Did you mean 'finetune'?"),
        ("tiny-1/heal", "the run has no step 'heal'"),
        ("tiny-2/base", "no run is named 'tiny-2'. Did you mean 'tiny-1'?"),
        ("../x/base", "no run is named '../x'"),
        ("eval", "'eval' is not in the store (efefefefefef); run its recipe."),
        ("abab", "'abab' could be abababababab, ababababcdcd; write more of the key."),
    ],
)
def test_a_wrong_name_says_what_could_be_meant(store: Store, word: str, message: str) -> None:
    make(store, BASE, "base")
    make(store, "ababababcdcd" + "0" * 52, "other")
    make(store, TUNED, "finetune")
    note_run(store, "tiny-1", base=BASE, finetune=TUNED, eval=LOOSE)
    with pytest.raises(RecipeError) as caught:
        resolve(store, word)
    assert message in str(caught.value)
