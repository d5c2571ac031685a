"""The store: what is finished is found, what is damaged is not, and nobody does work twice."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from store_processes import process

from lcc.core.errors import BusyError, ResourceError
from lcc.store.artifact import Artifact, Work
from lcc.store.locks import Leases
from lcc.store.store import Store

KEY, OTHER = "ab" * 32, "cd" * 32
REPORT = {"format": 1, "name": "finetune", "kind": "finetune"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, warn=lambda sentence: pytest.fail(sentence))


def make(store: Store, key: str = KEY, *, reuse: tuple[Path, ...] = (), **files: str) -> Artifact:
    """Publish an artifact whose model/ holds `files`."""
    with store.claim(key) as work:
        assert isinstance(work, Work)
        fill(work.path, **(files or {"weights": "1234"}))
        return store.publish(work, report=REPORT, reuse=reuse)


def fill(folder: Path, **files: str) -> None:
    (folder / "model").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "model" / name).write_text(text)


def test_what_was_published_is_found_with_its_report(store: Store) -> None:
    assert store.find(KEY) is None
    published = make(store, weights="1234", config="{}")
    found = store.find(KEY)
    assert found == published
    assert found.report == REPORT
    assert found.manifest["files"].keys() == {"model/config", "model/weights", "report.json"}
    assert found.manifest["files"]["model/weights"] == {
        "bytes": 4,
        "sha256": "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4",
    }
    assert json.loads((found.path / "MANIFEST.json").read_text()) == found.manifest
    assert [a.key for a in store.artifacts()] == [KEY]


def test_everybody_may_read_it_and_resume_state_is_gone(store: Store) -> None:
    with store.claim(KEY) as work:
        assert isinstance(work, Work)
        fill(work.path, weights="1")
        (work.path / "model" / "weights").chmod(0o600)
        (work.path / "state").mkdir(mode=0o700)
        (work.path / "state" / "optimizer").write_text("x")
        path = store.publish(work, report=REPORT).path
    modes = {p.relative_to(path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in [path, *path.rglob("*")]}
    assert modes == {
        ".": 0o755,
        "model": 0o755,
        "model/weights": 0o644,
        "report.json": 0o644,
        "MANIFEST.json": 0o644,
    }
    assert list((store.root / "work").iterdir()) == []


def overwrite(path: Path) -> None:
    (path / "model" / "weights").write_text("1235")


def shorten(path: Path) -> None:
    (path / "model" / "weights").write_text("123")


def remove(path: Path) -> None:
    (path / "model" / "weights").unlink()


def add(path: Path) -> None:
    (path / "model" / "extra").touch()


def link(path: Path) -> None:
    (path / "model" / "weights").rename(path.parent.parent / "elsewhere")
    (path / "model" / "weights").symlink_to(path.parent.parent / "elsewhere")


def spoil_manifest(path: Path) -> None:
    (path / "MANIFEST.json").write_text('{"format": 1')


def borrow_manifest(path: Path) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    (path / "MANIFEST.json").write_text(json.dumps({**manifest, "key": OTHER}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (overwrite, "model/weights has changed (SHA-256 "),
        (shorten, "model/weights has 3 bytes instead of 4"),
        (remove, "model/weights is missing"),
        (add, "model/extra is not in its manifest"),
        (link, "model/weights is a link instead of a file"),
        (spoil_manifest, "MANIFEST.json is no JSON"),
        (borrow_manifest, "MANIFEST.json is not one of format 1 for this key"),
    ],
)
def test_a_damaged_artifact_is_named_set_aside_and_made_again(
    store: Store, damage: Callable[[Path], None], sentence: str
) -> None:
    for n in (1, 2):
        damage(make(store).path)
        heard: list[str] = []
        store.warn = heard.append
        assert store.find(KEY) is None
        assert len(heard) == 1
        assert f"is damaged: {sentence}" in heard[0]
        assert f"damaged/{KEY}.{n}" in heard[0]
        assert (store.root / "damaged" / f"{KEY}.{n}").is_dir()
        assert store.find(KEY) is None
    store.warn = lambda sentence: pytest.fail(sentence)
    assert store.find(make(store).key) is not None


def test_unchanged_files_are_hard_links_to_the_parents(store: Store) -> None:
    parent = make(store, tokenizer="same", weights="old")
    child = make(store, OTHER, reuse=(parent.path,), tokenizer="same", weights="new")
    inodes = [(a.path / "model" / n).stat().st_ino for n in ("tokenizer", "weights") for a in (parent, child)]
    assert inodes[0] == inodes[1]
    assert inodes[2] != inodes[3]
    assert store.find(OTHER) == child


def test_a_rotten_parent_does_not_replace_a_good_file(store: Store) -> None:
    parent = make(store, tokenizer="same")
    (parent.path / "model" / "tokenizer").write_text("SAME")
    make(store, OTHER, reuse=(parent.path,), tokenizer="same")
    assert store.find(OTHER) is not None


def test_publishing_over_a_valid_artifact_keeps_the_first(store: Store, tmp_path: Path) -> None:
    with store.claim(KEY) as work:
        assert isinstance(work, Work)
        fill(work.path, weights="second")
        # Only an owner that was thought dead can come to this: another one has published.
        first = make(Store(tmp_path / "elsewhere"), weights="first")
        (tmp_path / "store").mkdir()
        first.path.rename(tmp_path / "store" / KEY)
        published = store.publish(work, report=REPORT)
    assert (published.path / "model" / "weights").read_text() == "first"
    assert not work.path.exists()


def test_who_lost_the_lease_does_not_publish(store: Store) -> None:
    with pytest.raises(BusyError, match="was lost"), store.claim(KEY) as work:
        assert isinstance(work, Work)
        thief = Leases(store.root / "leases", stale_seconds=-1).try_acquire(KEY)
        store.publish(work, report=REPORT)
    assert thief is not None
    thief.release()
    assert store.find(KEY) is None


CRASH = f"""
import signal
parent, key = sys.argv[1] + "/store/{OTHER}", {KEY!r}
with store.claim(key) as work:
    (work.path / "model").mkdir()
    (work.path / "model" / "tokenizer").write_text("same")
    os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    store.publish(work, report={{}}, reuse=[Path(parent)])
"""


def test_a_crash_before_the_last_rename_leaves_nothing_visible(store: Store) -> None:
    parent = make(store, OTHER, tokenizer="same")
    with process(CRASH, store.root) as crashing:
        assert crashing.popen.wait() == -9
    assert (store.root / "work" / KEY / "MANIFEST.json").is_file()
    assert store.find(KEY) is None
    with store.claim(KEY) as work:
        assert isinstance(work, Work)
        assert [p.name for p in work.path.iterdir()] == ["model"]
        # It was linked to the parent's file; the next owner may write into it all the same.
        with (work.path / "model" / "tokenizer").open("r+") as file:
            file.write("SAME")
    assert store.find(OTHER) == parent


COMPUTE = f"""
with store.claim({KEY!r}, label="finetune") as claimed:
    if isinstance(claimed, Artifact):
        say("reused")
    else:
        say("computing")
        wait()
        (claimed.path / "result").write_text(str(os.getpid()))
        store.publish(claimed, report={{}})
        say("published")
"""


def test_of_two_processes_one_computes_and_the_other_waits_and_reuses(store: Store) -> None:
    with process(COMPUTE, store.root) as first:
        assert first.heard() == "computing"
        with process(COMPUTE, store.root) as second:
            waiting = second.heard()
            assert waiting.startswith("waiting for finetune, held by ")
            assert waiting.endswith(f":{first.popen.pid}.")
            first.go()
            assert first.heard() == "published"
            assert second.heard() == "reused"
    found = store.find(KEY)
    assert found is not None
    assert (found.path / "result").read_text() == str(first.popen.pid)


def test_of_eight_that_want_a_step_at_one_moment_one_computes_also_when_it_dies(store: Store) -> None:
    with ExitStack() as stack:
        eight = [stack.enter_context(process("say('ready'); wait()" + COMPUTE, store.root)) for _ in range(8)]
        assert [one.heard() for one in eight] == ["ready"] * 8
        for one in eight:
            one.go()
        first = {one: one.heard() for one in eight}
        (owner,) = (one for one, said in first.items() if said == "computing")
        rest = [one for one in eight if one is not owner]
        assert all(first[one].endswith(f":{owner.popen.pid}.") for one in rest)
        owner.kill()
        then = {one: one.heard() for one in rest}
        (heir,) = (one for one, said in then.items() if said == "computing")
        heir.go()
        assert heir.heard() == "published"
        others = [one for one in rest if one is not heir]
        assert all(then[one].endswith(f":{heir.popen.pid}.") for one in others)
        assert [one.heard() for one in others] == ["reused"] * 6
    found = store.find(KEY)
    assert found is not None
    assert (found.path / "result").read_text() == str(heir.popen.pid)


def test_the_work_of_a_killed_owner_is_taken_up_where_it_was(store: Store) -> None:
    with process(COMPUTE, store.root) as first:
        assert first.heard() == "computing"
        (store.root / "work" / KEY / "state").mkdir()
        with process(COMPUTE, store.root) as second:
            assert second.heard().startswith("waiting for finetune")
            first.kill()
            assert second.heard() == "computing"
            assert (store.root / "work" / KEY / "state").is_dir()
            second.go()
            assert second.heard() == "published"
    assert store.find(KEY) is not None


def test_waiting_too_long_says_who_holds_it(store: Store) -> None:
    store.warn = lambda sentence: None
    with process(COMPUTE, store.root) as first:
        assert first.heard() == "computing"
        with pytest.raises(BusyError) as caught, store.claim(KEY, label="x", timeout_seconds=0):
            pass
    assert f":{first.popen.pid} for more than 0 s" in str(caught.value)
    assert caught.value.exit_code == 8


def test_a_failed_step_gives_the_lease_back_and_keeps_its_work(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.claim(KEY) as work:
        assert isinstance(work, Work)
        fill(work.path, partial="1")
        raise ZeroDivisionError
    with store.claim(KEY) as again:
        assert isinstance(again, Work)
        assert (again.path / "model" / "partial").is_file()


def test_too_little_disk_is_said_before_the_step(store: Store) -> None:
    store.require_space(1, "finetune")
    with pytest.raises(ResourceError) as caught:
        store.require_space(10**18, "finetune")
    assert caught.value.exit_code == 6
    assert "finetune needs 1,000,000,000 GB of free disk" in str(caught.value)
    assert "lcc store gc" in str(caught.value)
