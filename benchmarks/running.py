"""Jobs in processes of their own: pinned, one thread count, facts back as JSON; peers' rooms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = {  # torch first: a plain request would bring gigabytes of CUDA
    "llm_compressor": ("torch==2.13.0", "llmcompressor==0.14.0.1", "transformers>=5.15,<5.18",
                       "compressed-tensors>=0.19,<0.20"),
    "auto_round": ("torch==2.13.0", "auto-round==0.16.1"),
    "trl": ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "peft==0.21.2",
            "accelerate==1.15.0", "datasets==5.2.0"),
}  # fmt: skip


def environment(peer: str, root: Path) -> Path:
    """The Python of a peer's own environment below `root`, made at its first use."""
    folder = root / peer
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"making the environment of {peer} in {folder} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = PEERS[peer]
        for packages in (wanted[:1], wanted):
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "ready").touch()
    return python


def run(python: Path | str, script: str, job: dict[str, Any], work: Path) -> Any:
    """`python SCRIPT JOB`, pinned to the first cores; its facts, or its last words as an error."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{Path(script).stem}-{os.getpid()}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    threads = str(job.get("threads", 1))
    surroundings = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    cores = sorted(os.sched_getaffinity(0))[: int(threads)]
    done = subprocess.run(
        [str(python), str(HERE / script), str(path)],
        capture_output=True,
        text=True,
        env=surroundings,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    path.unlink(missing_ok=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"{script} failed ({done.returncode}): {' | '.join(said[-3:])}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def ours(job: dict[str, Any], work: Path) -> Any:
    return run(sys.executable, "ours.py", job, work)


def score(model: Path, *, parent: Path, text: Path, tokens: int, threads: int, work: Path) -> Any:
    """What the one scorer says of a model folder; remembered, for it never changes."""
    kept = model.parent / f"score-{tokens}.json"
    if not kept.is_file():
        job = {
            "model": str(model),
            "parent": str(parent),
            "text": str(text),
            "tokens": tokens,
            "threads": threads,
            "kept": str(work / "parent"),
        }
        kept.write_text(json.dumps(run(sys.executable, "scorer.py", job, work)), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def machine(threads: int, work: Path) -> dict[str, float]:
    """Memory bandwidth (bytes/s) and float32 matrix product (FLOP/s) on so many threads."""
    return dict(run(sys.executable, "gauge.py", {"threads": threads}, work))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
