"""One training, timed step by step: `python steps.py JOB.json`, facts as JSON on stdout.

The job: width, depth, tokens (of a step), length, vocabulary, steps, threads, strategy and
world_size; or `points`, several of them. The steps are those of lcc's own loop on random tokens:
micro-batches, clipping, AdamW.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 2
HEAD = 32  # channels of an attention head
CHUNK = 256  # targets whose logits are held at a time, lcc's own default
MATRIX = 1024  # of the product whose speed steps are compared with


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps(apart(job["points"]) if "points" in job else launched(job)))


def launched(job: dict[str, Any]) -> dict[str, Any]:
    """The training in its group of processes."""
    from lcc.core.machine import cores
    from lcc.distributed.dist import Distributed
    from lcc.distributed.launch import launch

    chosen = Distributed(strategy=job.get("strategy", "ddp"), world_size=job.get("world_size", 1))
    job["threads"] = max(1, min(job["threads"], cores()) // chosen.world_size)
    return dict(launch(measured, chosen, job))


def apart(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainings of one process and thread, each in a process of its own; imports are shared."""
    import transformers

    assert transformers.LlamaForCausalLM
    # Nothing has run in parallel yet, so that forked processes find no lock held.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return pool.map(alone, points, chunksize=1)


def alone(job: dict[str, Any]) -> dict[str, Any]:
    from lcc.distributed.dist import SINGLE

    return measured(SINGLE, job)


def measured(dist: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step on rank 0 (median; by the wall and of the processor), and its memory.

    Memory is how far it rose above the model; `flops` a matrix product's, of the processor.
    """
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    model, stepper = _stepper(dist, job)
    before = _status("VmRSS")
    _forget_peak()
    shape = {"parameters": sum(p.numel() for p in model.parameters())}
    shape["body"] = shape["parameters"] - 2 * job["vocabulary"] * job["width"]
    seconds, worked, losses, made = [], [], [], stepper()
    optimizer = torch.optim.AdamW(made.trainable, lr=1e-3, fused=True)
    examples, batch = _examples(job)
    for step in range(WARM_UP + job["steps"]):
        dist.barrier()
        started, begun = time.perf_counter(), time.process_time()
        losses.append(made.accumulate(examples, batch, step=step))
        torch.nn.utils.clip_grad_norm_(made.trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        worked.append(time.process_time() - begun)
    memory, cpu = _status("VmHWM") - before, statistics.median(worked[WARM_UP:])
    return {
        **shape,
        "seconds": statistics.median(seconds[WARM_UP:]),
        "loss": losses[-1],
        "cpu_seconds": cpu,
        "cpu_of_all": dist.sum([cpu])[0],
        "flops": _product(),
        "memory": memory,
        "tokens": job["tokens"],
        "bytes_sent": made.reduction.bytes_sent // len(seconds),
    }


def _stepper(dist: Any, job: dict[str, Any]) -> Any:
    """The model, not yet with memory of its own for training, and how its stepper is made."""
    import transformers

    from lcc.core.progress import Progress
    from lcc.distributed.dist import Distributed
    from lcc.training.loss import logits_function, projection_of
    from lcc.training.step import Stepper

    width = job["width"]
    config = transformers.LlamaConfig(
        vocab_size=job["vocabulary"],
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=job["depth"],
        num_attention_heads=width // HEAD,
        max_position_embeddings=job["length"],
    )
    model: Any = transformers.LlamaForCausalLM(config)

    def made() -> Any:
        chosen = Distributed(strategy=job.get("strategy", "ddp"), world_size=dist.world_size)
        sharded = None
        if chosen.strategy == "fsdp":
            from lcc.distributed.fsdp import Sharded

            sharded = Sharded(model, chosen, dist, "cpu")
        working = sharded.working if sharded else model
        found = Stepper(
            model=working,
            head="causal",
            student=logits_function(working, "causal"),
            micro_tokens=job["tokens"] // dist.world_size,
            pad=0,
            seed=0,
            device="cpu",
            dtype="float32",
            dist=dist,
            progress=Progress(quiet=True),
            sharded=sharded,
            distributed=chosen,
            projection=projection_of(working, "causal"),
            loss_chunk=CHUNK,
        )
        if sharded is not None:
            sharded.shard()
        return found

    return model, made


def _examples(job: dict[str, Any]) -> Any:
    import random
    from types import SimpleNamespace

    from lcc.training.batches import EncodedExamples

    dice = random.Random(0)
    rows = []
    for _ in range(job["tokens"] // job["length"]):
        ids = [dice.randrange(job["vocabulary"]) for _ in range(job["length"])]
        rows.append(SimpleNamespace(input_ids=ids, labels=ids))
    return EncodedExamples(rows, "causal"), list(range(len(rows)))


def _product() -> float:
    import torch

    left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
    taken = []
    for _ in range(5):
        begun = time.process_time()
        left @ right
        taken.append(time.process_time() - begun)
    return 2 * MATRIX**3 / min(taken)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    main()
