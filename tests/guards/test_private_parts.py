"""Private parts of libraries that lcc relies on: listed, and looked at in the versions installed."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest
import torch
import transformers
from test_structure import MODULES
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext

PUBLIC = {"_exit"}  # of os: documented under that name


def _source(thing: Any) -> str:
    return inspect.getsource(thing)


def _converter() -> Any:
    converters = pytest.importorskip("ctranslate2.converters.transformers")
    return converters


def _sacrebleu(name: str) -> list[str]:
    from sacrebleu import metrics

    return list(inspect.signature(getattr(metrics, name)._extract_corpus_statistics).parameters)[1:]


def _model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return transformers.LlamaForCausalLM._from_config(config)


# Private name → (library, what we rely on). Each must hold, or the file that uses the name breaks.
RELIED_ON: dict[str, tuple[str, Callable[[], bool]]] = {
    "_monitor_workers": (
        "torch",
        lambda: (
            list(inspect.signature(LocalElasticAgent._monitor_workers).parameters) == ["self", "worker_group"]
        ),
    ),
    "_start_workers": (
        "torch",
        lambda: (
            list(inspect.signature(LocalElasticAgent._start_workers).parameters) == ["self", "worker_group"]
        ),
    ),
    "_stop_workers": (
        "torch",
        lambda: "worker_group" in inspect.signature(LocalElasticAgent._stop_workers).parameters,
    ),
    "_shutdown": ("torch", lambda: "timeout" in inspect.signature(LocalElasticAgent._shutdown).parameters),
    "_remaining_restarts": ("torch", lambda: "_remaining_restarts" in _source(LocalElasticAgent.__mro__[1])),
    "_pcontext": ("torch", lambda: "self._pcontext" in _source(LocalElasticAgent)),
    "_pc": ("torch", lambda: "self._pc" in _source(MultiprocessContext)),
    "_foreach_norm": (
        "torch",
        lambda: [float(n) for n in torch._foreach_norm([torch.ones(4), torch.zeros(2)])] == [2.0, 0.0],
    ),
    "_foreach_mul_": (
        "torch",
        lambda: (x := [torch.ones(2)], torch._foreach_mul_(x, [torch.tensor(3.0)]))[0][0].tolist() == [3, 3],
    ),
    "_compiled_call_impl": ("torch", lambda: torch.nn.Linear(1, 1)._compiled_call_impl is None),
    "_from_config": ("transformers", lambda: isinstance(_model(), torch.nn.Module)),
    "_keep_in_fp32_modules": ("transformers", lambda: hasattr(_model(), "_keep_in_fp32_modules")),
    "_keep_in_fp32_modules_strict": (
        "transformers",
        lambda: hasattr(_model(), "_keep_in_fp32_modules_strict"),
    ),
    "_keys_to_ignore_on_save": ("transformers", lambda: hasattr(_model(), "_keys_to_ignore_on_save")),
    "_init_weights": ("transformers", lambda: callable(_model()._init_weights)),
    "_model_name_or_path": (
        "transformers",
        # What a GGUF file's general.name becomes in a config.
        lambda: "_model_name_or_path" in _source(transformers.integrations.ggml),
    ),
    "_extract_corpus_statistics": (
        "sacrebleu",
        lambda: all(_sacrebleu(n)[:2] == ["hypotheses", "references"] for n in ("BLEU", "CHRF")),
    ),
    "_MODEL_LOADERS": ("ctranslate2", lambda: "LlamaConfig" in _converter()._MODEL_LOADERS),
    "_remove_pad_weights": (
        "ctranslate2",
        lambda: (
            list(inspect.signature(_converter().MarianMTLoader._remove_pad_weights).parameters)
            == ["self", "spec"]
        ),
    ),
    "_get": (
        "gguf",
        lambda: (
            list(inspect.signature(__import__("gguf").GGUFReader._get).parameters)[:3]
            == ["self", "offset", "dtype"]
        ),
    ),
}


@cache
def _private_uses() -> dict[str, set[str]]:
    """Private name that lcc does not define → the files that use it on what is not their own."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    own: set[str] = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if ast.unparse(node.value) == "self" else set()
    own -= RELIED_ON.keys()
    uses: dict[str, set[str]] = {}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            word = node.attr if isinstance(node, ast.Attribute) else None
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                word = getattr(node.args[1], "value", None)
            if isinstance(node, ast.FunctionDef) and node.name in RELIED_ON:
                word = node.name
            is_private = isinstance(word, str) and word.startswith("_") and not word.startswith("__")
            if is_private and word not in own | PUBLIC:
                uses.setdefault(str(word), set()).add(name)
    return uses


def test_every_private_part_in_use_is_listed_and_no_other() -> None:
    assert _private_uses().keys() == RELIED_ON.keys(), _private_uses().keys() ^ RELIED_ON.keys()


@pytest.mark.parametrize("name", RELIED_ON)
def test_the_installed_library_still_has_it(name: str) -> None:
    library, holds = RELIED_ON[name]
    files = ", ".join(f"lcc.{file}" for file in sorted(_private_uses()[name]))
    try:
        is_there = holds()
    except (AttributeError, TypeError, ValueError) as error:
        is_there, library = False, f"{library} ({error!r})"
    assert is_there, (
        f"{library.partition(' ')[0]} {version(library.partition(' ')[0])} has another {name} than {files} "
        f"relies on; read its source and change these files, or pin the version before. {library}"
    )
