"""The machine that a number was measured on: versions, cores, memory, accelerators; no torch needed."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lcc.core.lazy import torch

LOOK_SECONDS = 0.3
PACKAGES = ("lcc", "torch", "transformers", "tokenizers", "safetensors", "peft", "accelerate",
            "torch-pruning", "bitsandbytes", "compressed-tensors", "gguf", "numpy", "sacrebleu",
            "nltk", "jieba", "scikit-learn", "pyarrow", "hydra-core", "omegaconf", "pydantic",
            "rich")  # fmt: skip


@cache
def version_of(package: str) -> str | None:
    """The installed version of `package`, or None; the package itself is not imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Installed versions of Python and of every package that can change a number or a file."""
    by_package = {package: version_of(package) for package in PACKAGES}
    return {"python": platform.python_version(), **{p: v for p, v in by_package.items() if v}}


def machine() -> dict[str, Any]:
    """The hardware this process may use; nothing that names its owner or its network."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "accelerators": accelerators(),
    }


def machine_key() -> str:
    """Equal hardware has an equal key; speed measured under one key says nothing about another."""
    facts = machine()
    facts["memory_gib"] = round(facts.pop("memory_bytes") / 2**30)  # kernels differ by a few pages
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cores() -> int:
    """Cores this process may use: its affinity, and the quota of the container around it."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        allowed = min(allowed, max(1, round(int(quota[0]) / int(quota[1]))))
    return allowed


def free_cores() -> int:
    """Cores this process may use that had little to do just now; at least 1.

    One thread more than free cores makes all threads wait for the one that shares its core.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    before = busy_ticks()
    if not before or len(allowed) < 2:
        return cores()
    started = time.monotonic()
    time.sleep(LOOK_SECONDS)
    ticks = (time.monotonic() - started) * os.sysconf("SC_CLK_TCK")
    after = busy_ticks()
    idle = [cpu for cpu in allowed if after.get(cpu, 0) - before.get(cpu, 0) < ticks / 2]
    return max(1, min(cores(), len(idle)))


def busy_ticks() -> dict[int, int]:
    """Ticks that each core was not idle since the machine started; {} where it is unknown."""
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return {}
    return {
        int(words[0][3:]): sum(map(int, words[1:])) - int(words[4]) - int(words[5])
        for words in lines
        if words[0].startswith("cpu") and words[0] != "cpu"
    }


@cache
def memory_bytes() -> int:
    """Physical memory, or the container's limit where that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def available_bytes() -> int | None:
    """Memory that can be had now without swapping, where it is known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return int(line.split()[1]) * 1024 if line else None


def free_bytes(folder: Path) -> int:
    """Free disk below `folder`, or below its nearest parent that exists."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


@cache
def processor() -> str:
    """The processor's own name, as its maker writes it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@cache
def accelerators() -> list[str]:
    """Names of the GPUs, asked of the driver: importing torch would take seconds."""
    if platform.system() == "Darwin":
        return [f"{processor()} GPU"] if platform.machine() == "arm64" else []
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for card in cards for line in card.read_text().splitlines()]
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return names or _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What a small system program prints, or nothing where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


# Memory: what malloc keeps of what was freed, and which errors say that there is not enough.

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
LARGE_BYTES = 1 << 20
_SAYS_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
USUAL_BYTES = 1 << 25  # where glibc's own threshold ends up once tensors come and go


@functools.cache
def _libc() -> Any:
    """glibc, or None elsewhere."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


def return_large_blocks() -> None:
    """From here on, large tensors go back to the system when freed, not onto a list of holes.

    glibc else raises its threshold to 32 MB, and holes of that size took 300 MB beside 400 MB of
    tensors.
    """
    if _libc() is not None:
        _libc().mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def keep_large_blocks() -> None:
    """As before `return_large_blocks`: a step that trains would pay for fresh pages every time."""
    if _libc() is not None:
        _libc().mallopt(MMAP_THRESHOLD, USUAL_BYTES)
        _libc().mallopt(TRIM_THRESHOLD, 2 * USUAL_BYTES)


def return_freed() -> None:
    """Give back what was freed until now."""
    if _libc() is not None:
        _libc().malloc_trim(0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory is what `error` is about, of a GPU or the machine's."""
    is_typed = isinstance(error, torch.OutOfMemoryError)
    return is_typed or any(words in str(error).lower() for words in _SAYS_MEMORY)
