"""Pretrainings that one process or a group runs, and what each ended with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finetune_cases as tuning
import torch

from lcc.config.cards import decode
from lcc.distributed.dist import Dist
from lcc.stages.pretrain import Pretrain
from lcc.tasks.task import Task

TEXT = Task(name="text", fields=("source", "target"), answer="{source} . {target} .")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "causal": {"objective": "causal", "tokenizer": {"kind": "bpe", "vocab_size": 300}},
    "masked": {
        "objective": {"name": "masked", "masking": {"whole_words": True}},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 80},
    },
    "next_sentence": {"objective": "next_sentence", "tokenizer": {"kind": "wordpiece", "vocab_size": 80}},
    "spans": {"objective": "spans", "tokenizer": {"kind": "unigram", "vocab_size": 140}},
}
PARENTS = {"causal": "causal", "masked": "classify", "next_sentence": "classify", "spans": "seq2seq"}
SHARDED = [("ddp", "causal"), ("fsdp", "causal"), ("fsdp", "next_sentence"), ("fsdp", "spans")]


def stage(**options: Any) -> Pretrain:
    base = {"batch_tokens": 96, "micro_tokens": 48, "max_length": 24, "lr": 3e-3}
    return decode(Pretrain, {**base, **options})


def pretrained(dist: Dist, world: str, work: str, name: str, strategy: str) -> dict[str, Any]:
    """The weights that a pretraining without dropout ends with, on rank 0."""
    torch.set_num_threads(1)
    shared = {"strategy": strategy, "world_size": dist.world_size}
    chosen = stage(**OBJECTIVES[name], dropout=0.0, max_steps=4, distributed=shared)
    context = tuning.context(Path(work), Path(world), TEXT, dist=dist)
    outcome = chosen.run(tuning.bundle(Path(world) / PARENTS[name]), context)
    assert outcome.bundle is not None
    return dict(outcome.bundle.module.state_dict()) if dist.is_main else {}


def pretrained_each(dist: Dist, world: str, work: str) -> dict[str, dict[str, Any]]:
    """Everything that two processes pretrain in these tests, in one group."""
    return {
        f"{strategy}-{name}": pretrained(dist, world, f"{work}/{strategy}-{name}", name, strategy)
        for strategy, name in SHARDED
    }
