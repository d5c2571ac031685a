"""Lazy imports of heavy libraries, so that decoding a recipe needs none of them."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

# tqdm reads this when torch first imports it; libraries' bars would bury our own progress.
os.environ.setdefault("TQDM_DISABLE", "1")
# OpenMP's idle threads spin by default: beside a busy neighbour a tiny forward took 270 ms, not 2.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# On OpenMP, numba's first parallel loop would reset how many threads torch has.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")

__all__ = ["bitsandbytes", "compressed_tensors", "greenlet", "peft", "safetensors",
           "safetensors_torch", "tokenizers", "torch", "torch_pruning", "transformers"]  # fmt: skip

if TYPE_CHECKING:
    import bitsandbytes as bitsandbytes
    import compressed_tensors as compressed_tensors
    import greenlet as greenlet
    import peft as peft
    import safetensors as safetensors
    import safetensors.torch as safetensors_torch
    import tokenizers as tokenizers
    import torch as torch
    import torch_pruning as torch_pruning
    import transformers as transformers
else:

    class _Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

    bitsandbytes = _Lazy("bitsandbytes")
    compressed_tensors = _Lazy("compressed_tensors")
    greenlet = _Lazy("greenlet")
    peft = _Lazy("peft")
    safetensors = _Lazy("safetensors")
    safetensors_torch = _Lazy("safetensors.torch")
    tokenizers = _Lazy("tokenizers")
    torch = _Lazy("torch")
    torch_pruning = _Lazy("torch_pruning")
    transformers = _Lazy("transformers")
