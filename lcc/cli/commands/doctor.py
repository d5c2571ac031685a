"""Report what this machine has, what lcc misses on it, and how to install that."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lcc.cli.arguments import Arguments, emit
from lcc.core import format, machine
from lcc.core.errors import RecipeError

USAGE = """usage: lcc doctor [--json]

Prints versions, cores, memory, accelerator and free disk, and what is missing with the way to get
it. Exit code 6 when something is missing that every recipe needs."""

OPTIONAL = {
    "tensorboard": "tracker=tensorboard",
    "wandb": "tracker=wandb",
    "datasets": "reading a dataset saved by `datasets`",
}
FLOORS = {"torch": (2, 10), "transformers": (5, 3)}  # below these, known security holes
LITTLE_DISK, LITTLE_MEMORY = 10e9, 6e9  # what the smaller recipes take at their peak

# Asked in a process of its own: torch takes seconds to import and may fail in ways of its own.
ASK_TORCH = """
import json, torch
mps = getattr(torch.backends, "mps", None)
print(json.dumps({"threads": torch.get_num_threads(), "cuda": torch.cuda.is_available(),
                  "cuda_devices": [torch.cuda.get_device_name(i)
                                   for i in range(torch.cuda.device_count())],
                  "mps": bool(mps and mps.is_available()), "distributed":
                  torch.distributed.is_available() and torch.distributed.is_gloo_available()}))
"""


def main(arguments: Arguments) -> int:
    if arguments.words or arguments.overrides:
        raise RecipeError("doctor takes no words; write lcc doctor or lcc doctor --json.")
    facts = examine()
    emit(facts, arguments.json, _text(facts))
    return 6 if any(finding["needed"] for finding in facts["missing"]) else 0


def examine() -> dict[str, Any]:
    """Everything that doctor knows, as plain data."""
    torch = _torch()
    facts = {
        "versions": machine.versions(),
        "machine": machine.machine(),
        "available_memory_bytes": machine.available_bytes(),
        "free_disk_bytes": machine.free_bytes(Path("runs")),
        "torch": torch,
    }
    return {**facts, "missing": list(_missing(facts))}


def _torch() -> dict[str, Any]:
    """What torch itself says it can use, or why it cannot say."""
    if machine.version_of("torch") is None:
        return {"error": "torch is not installed"}
    done = subprocess.run(
        [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": lines[-1]}
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _missing(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for package in machine.PACKAGES:
        version = machine.version_of(package)
        if version is None:
            yield _finding(package, "every recipe", "pip install lcc", needed=True)
        elif package in FLOORS and _numbers(version) < FLOORS[package]:
            floor = ".".join(map(str, FLOORS[package]))
            yield _finding(
                f"{package} {floor} or newer (here: {version})",
                "safety",
                f"pip install '{package}>={floor}'",
                needed=True,
            )
    if "error" in facts["torch"]:
        yield _finding(
            f"a torch that starts ({facts['torch']['error']})",
            "every recipe",
            "pip install --force-reinstall torch",
            needed=True,
        )
    elif facts["machine"]["accelerators"] and not (facts["torch"]["cuda"] or facts["torch"]["mps"]):
        yield _finding(
            "a torch that can use the accelerator", "device=cuda", "see pytorch.org, Get started: choose CUDA"
        )
    yield from _missing_tools()
    yield from _scarce(facts)


def _missing_tools() -> Iterator[dict[str, Any]]:
    for package, purpose in OPTIONAL.items():
        if machine.version_of(package) is None:
            yield _finding(package, purpose, f"pip install 'lcc[{package}]'")
    if machine.version_of("pip") is None:
        yield _finding("pip", "lcc fetch", f"{sys.executable} -m ensurepip")
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        yield _finding(
            "apt-get and dpkg-deb",
            "dataset=debian_en_zh",
            "a Debian or Ubuntu machine or container; +recipe=mt_en_zh_small needs neither",
        )
    if not _has_wordnet():
        yield _finding(
            "WordNet", "METEOR of English texts, synonyms", f"{sys.executable} -m nltk.downloader wordnet"
        )


def _scarce(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if facts["free_disk_bytes"] < LITTLE_DISK:
        yield _finding(
            f"disk: {format.size(facts['free_disk_bytes'])} free",
            "recipes with real models",
            "lcc store gc, or run in a folder on a larger disk",
        )
    memory = facts["machine"]["memory_bytes"]
    if memory < LITTLE_MEMORY:
        yield _finding(
            f"memory: {format.size(memory)}",
            "recipes with real models",
            "+recipe=tiny, or a machine with 8 GB or more",
        )


def _has_wordnet() -> bool:
    if find_spec("nltk") is None:
        return False
    import nltk

    return any(
        (Path(root) / "corpora" / name).exists()
        for root in nltk.data.path
        for name in ("wordnet", "wordnet.zip")
    )


def _finding(what: str, purpose: str, get: str, *, needed: bool = False) -> dict[str, Any]:
    return {"what": what, "for": purpose, "get": get, "needed": needed}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _text(facts: dict[str, Any]) -> str:
    hardware, torch = facts["machine"], facts["torch"]
    lines = [f"{name:22} {version}" for name, version in facts["versions"].items()]
    rows = {
        "system": f"{hardware['system']} {hardware['architecture']}",
        "processor": hardware["processor"],
        "cores": hardware["cores"],
        "memory": f"{format.size(hardware['memory_bytes'])}, "
        f"{format.size(facts['available_memory_bytes'])} available",
        "accelerator": ", ".join(hardware["accelerators"]) or "none",
        "torch computes on": torch.get("error") or _devices(torch),
        "free disk": format.size(facts["free_disk_bytes"]),
    }
    lines += ["", *(f"{name:22} {value}" for name, value in rows.items()), ""]
    findings = [f"missing: {f['what']} (for {f['for']})\n  get it: {f['get']}" for f in facts["missing"]]
    return "\n".join([*lines, *(findings or ["nothing is missing."])])


def _devices(torch: dict[str, Any]) -> str:
    names = [*torch["cuda_devices"], *(["Apple GPU"] if torch["mps"] else [])]
    gloo = "" if torch["distributed"] else ", no distributed training"
    return f"{', '.join([*names, 'CPU'])} ({torch['threads']} threads{gloo})"
