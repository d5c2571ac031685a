"""Trackers leave files that their own tools read, and say what to install when they cannot."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcc.config.cards import Mistakes, decode, find_card, names
from lcc.config.yaml_files import read_yaml
from lcc.core.errors import ResourceError
from lcc.core.progress import Tracker, TrackerCard

CONFIGS = Path(__file__).parents[3] / "configs" / "tracker"


def tracker(name: str, **options: Any) -> TrackerCard:
    made = decode(find_card("trackers", name), options)
    assert isinstance(made, TrackerCard)
    return made


def test_every_tracker_has_a_config_that_decodes() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == names("trackers")
    for name in names("trackers"):
        content = dict(read_yaml(CONFIGS / f"{name}.yaml").content)
        assert content.pop("name") == name
        tracker(name, **content)


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    opened = tracker("none").open(tmp_path, "run/finetune")
    opened.log(1, {"loss": 2.0})
    opened.close()
    assert isinstance(opened, Tracker)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    opened = tracker("tensorboard").open(tmp_path, "run/finetune")
    for step in (1, 2, 3):
        opened.log(step, {"loss": 3.0 / step, "clipped": step == 2, "tokens": 100 * step})
    opened.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert [e.value for e in events.Scalars("clipped")] == [0.0, 1.0, 0.0]


def test_wandb_offline_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    opened = tracker("wandb").open(tmp_path, "run/finetune")
    for step in (1, 2):
        opened.log(step, {"loss": 3.0 / step})
    opened.close()
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    assert list(runs[0].glob("*.wandb"))
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_step_that_logs_nothing_leaves_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    tracker(name).open(tmp_path, "run/vocab").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_the_way_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "__import__", without(name))
    with pytest.raises(ResourceError, match=rf"pip install 'lcc\[{name}\]'"):
        tracker(name).open(tmp_path, "run/finetune")


def test_wandb_has_two_modes_only() -> None:
    with pytest.raises(Mistakes, match="mode"):
        tracker("wandb", mode="on line")


def without(package: str) -> Callable[..., Any]:
    """An import statement as it behaves where `package` is not installed."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if package in name.split("."):
            raise ImportError(f"No module named {package!r}")
        return real(name, *rest, **named)

    return refuse
