"""List, measure, keep and free the finished steps below runs/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError, did_you_mean
from lcc.core.format import clean, size
from lcc.store import gc
from lcc.store.gc import DiskUsage, disk_bytes
from lcc.store.store import ROOT, Store, resolve

USAGE: str = """usage: lcc store ls                 every finished step: key, size, who uses it
       lcc store du                 what store, work and damaged folders take on the disk
       lcc store pin NAME …         never free these
       lcc store unpin NAME …       free them once no run refers to them
       lcc store gc [--dry-run]     free what no run refers to and nobody pinned

NAME is a step of the last run, RUN/STEP, or the first characters of a key. A run refers to its
steps as long as its folder below runs/ exists.

  lcc store pin mt_en_zh-ab12cd34/finetune
  lcc store gc --dry-run"""

PLACES = ("store", "work", "damaged")


def main(arguments: Arguments) -> int:
    actions: dict[str, Callable[[Store, Arguments], None]] = {
        "ls": _ls,
        "du": _du,
        "pin": _pin,
        "unpin": _unpin,
        "gc": _gc,
    }
    name = arguments.words[0] if arguments.words else "ls"
    if name not in actions:
        raise RecipeError(f"lcc store has no {name!r}{did_you_mean(name, actions)}")
    if name in ("ls", "du", "gc") and (extra := [*arguments.words[1:], *arguments.overrides]):
        raise RecipeError(f"lcc store {name} takes no names, got {extra[0]!r}.")
    actions[name](Store(ROOT), arguments)
    return 0


def _ls(store: Store, arguments: Arguments) -> None:
    entries = gc.usage(store)
    rows = [("KEY", "KIND", "STEP", "SIZE", "OWN", "CREATED", "USED BY"), *map(_row, entries)]
    text = _table(rows) if entries else f"the store below {store.root}/ is empty."
    emit([asdict(entry) for entry in entries], arguments.json, text)


def _row(entry: DiskUsage) -> tuple[str, ...]:
    users = [*(["pinned"] if entry.pinned else []), *entry.used_by[:1]]
    more = f" and {len(entry.used_by) - 1} more" if len(entry.used_by) > 1 else ""
    needed = clean(", ".join(users)) + more
    return (
        entry.key[:12],
        clean(entry.kind),
        clean(entry.name),
        size(entry.bytes),
        size(entry.own_bytes),
        entry.created,
        needed or "nobody",
    )


def _du(store: Store, arguments: Arguments) -> None:
    facts = {place: disk_bytes([store.root / place]) for place in PLACES}
    facts["total"] = disk_bytes([store.root / place for place in PLACES])
    facts["freeable"] = sum(freed.bytes for freed in gc.collect(store, dry_run=True))
    rows = [(size(count), name) for name, count in facts.items()]
    hint = "\nlcc store gc frees the last of these." if facts["freeable"] else ""
    emit(facts, arguments.json, _table(rows) + hint)


def _pin(store: Store, arguments: Arguments) -> None:
    _change_pins(store, arguments, store.pin, done="pinned")


def _unpin(store: Store, arguments: Arguments) -> None:
    _change_pins(store, arguments, store.unpin, done="unpinned")


def _change_pins(store: Store, arguments: Arguments, change: Callable[[str], None], *, done: str) -> None:
    names = [*arguments.words[1:], *arguments.overrides]
    if not names:
        raise RecipeError(f"name what is to be {done}: a step of the last run, RUN/STEP or a key.")
    keys = {name: resolve(store, name) for name in names}
    for key in keys.values():
        change(key)
    lines = [f"{done} {clean(name)} ({key[:12]})" for name, key in keys.items()]
    emit({done: list(keys.values())}, arguments.json, "\n".join(lines))


def _gc(store: Store, arguments: Arguments) -> None:
    freed = gc.collect(store, dry_run=arguments.dry_run)
    total = sum(item.bytes for item in freed)
    verb = "would free" if arguments.dry_run else "freed"
    rows = [(size(f.bytes), f.place, f.key[:12], clean(f.name)) for f in freed]
    head = [_table(rows)] if rows else []
    folders = "1 folder" if len(freed) == 1 else f"{len(freed)} folders"
    text = "\n".join([*head, f"{verb} {size(total)} in {folders}."])
    facts = {"dry_run": arguments.dry_run, "bytes": total, "freed": [asdict(f) for f in freed]}
    emit(facts, arguments.json, text)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
