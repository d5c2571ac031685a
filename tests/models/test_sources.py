"""Sources: exactly one, pinned, told when missing, built the same every time."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from lcc.config.cards import Mistakes, decode
from lcc.core.errors import IntegrityError, ResourceError
from lcc.core.progress import Progress
from lcc.models import sources
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save
from lcc.models.reload_check import reload_gate
from lcc.models.sources import ModelSpec, build, fingerprint, missing, requirements

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
QUIET = Progress(quiet=True)


def spec_of(name: str) -> ModelSpec:
    return decode(ModelSpec, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), "model")


def spec(**source: Any) -> ModelSpec:
    return decode(ModelSpec, {"name": "m", "source": source}, "model")


@pytest.mark.parametrize(
    "source, sentence",
    [
        ({}, "nothing is given; write model.source.path=FOLDER"),
        ({"path": "a", "hub": "b/c"}, "got path and hub"),
        ({"hub": "a/b", "revision": "main"}, "40 hex digits"),
        ({"package": "a"}, "must be pinned"),
        ({"package": "a==1", "files": ["x"]}, "sha256"),
        ({"scratch": {"config": {}, "tokenizer": {"texts": ["a"]}}}, "needs model_type"),
    ],
)
def test_a_source_that_is_not_one_pinned_thing_is_refused(source: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Mistakes, match=sentence):
        spec(**source)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_bert", "tiny_t5"])
def test_a_tiny_model_survives_the_gate_with_its_tokenizer(name: str, tmp_path: Path) -> None:
    bundle = build(spec_of(name), tmp_path, progress=QUIET)
    save(bundle, tmp_path / "model")
    reload_gate(bundle, tmp_path / "model", parent=None)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ("Save 2023 files", "保存文件 ẞ𝒳\n\n x"):
        ids = again(text).input_ids
        assert ids == bundle.tokenizer(text).input_ids
        assert again.decode(ids, skip_special_tokens=True) == text
    starts = {"tiny_llama": "<s>", "tiny_bert": "[CLS]"}
    ids = again("a").input_ids
    if name in starts:
        assert ids.count(again.convert_tokens_to_ids(starts[name])) == 1


def test_a_tiny_model_is_the_same_whatever_was_drawn_before(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = build(spec_of("tiny_llama"), tmp_path, progress=QUIET)
    torch.manual_seed(2)
    second = build(spec_of("tiny_llama"), tmp_path, progress=QUIET)
    pairs = zip(first.module.parameters(), second.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()


def test_fingerprints_need_no_torch_and_follow_the_content(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save(build(spec_of("tiny_llama"), tmp_path, progress=QUIET), tmp_path / "model")
    local = spec(path=str(tmp_path / "model"))
    before = fingerprint(local)
    assert fingerprint(local) == before
    with (tmp_path / "model" / "config.json").open("a") as file:
        file.write("\n")
    assert fingerprint(local) != before
    code = (
        "import sys; from lcc.models.sources import ModelSpec, ModelSource, fingerprint; "
        f"fingerprint(ModelSpec(name='m', source=ModelSource(path={str(tmp_path / 'model')!r}))); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_must_be_fetched_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCC_HOME", str(tmp_path))
    assert missing(spec_of("gemma3_270m")) == (
        "model 'gemma3_270m' is not here: 5 packages, 238 MB, Gemma terms of use; "
        "run: lcc fetch model=gemma3_270m"
    )
    assert len(requirements(spec_of("gemma3_270m"))) == 5
    assert missing(spec_of("tiny_t5")) is None
    with pytest.raises(ResourceError, match="lcc fetch model=smollm2_135m"):
        build(spec_of("smollm2_135m"), tmp_path, progress=QUIET)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model folder inside a wheel of the cache, and the source that names it."""
    model = tmp_path / "model"
    save(build(spec_of("tiny_bert"), tmp_path, progress=QUIET), model)
    monkeypatch.setenv("LCC_HOME", str(tmp_path / "home"))
    wheel = tmp_path / "home" / "packages" / "some-model==1.0" / "some_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.write(model / name, f"some_model/{name}")
    content = b"".join((model / name).read_bytes() for name in names)
    return {
        "package": "some-model==1.0",
        "files": [f"some_model/{name}" for name in names],
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_a_folder_in_a_wheel_becomes_a_checkpoint(packaged: dict[str, Any], tmp_path: Path) -> None:
    bundle = build(spec(**packaged), tmp_path / "work", progress=QUIET)
    save(bundle, tmp_path / "out")
    original = open_bundle(tmp_path / "model").load()
    assert torch.equal(
        open_bundle(tmp_path / "out").load().bert.pooler.dense.weight, original.bert.pooler.dense.weight
    )


def test_files_with_another_digest_are_refused(packaged: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="promises 0000"):
        build(spec(**packaged | {"sha256": "0" * 64}), tmp_path / "work", progress=QUIET)


def test_the_hub_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    with pytest.raises(ResourceError, match="no network here"):
        sources.download("someone/something", "0" * 40)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name, most", [("smollm2_135m", 30.0), ("gemma3_270m", 40.0)])
def test_a_converted_gguf_still_knows_its_language(name: str, most: float, tmp_path: Path) -> None:
    """Perplexity of an easy English paragraph; without BOS Gemma's would be in the hundreds."""
    from lcc.models.sources import fetch

    fetch(spec_of(name), progress=QUIET)
    bundle = build(spec_of(name), tmp_path, progress=QUIET)
    save(bundle, tmp_path / "model")
    reload_gate(bundle, tmp_path / "model", parent=None)
    excerpt = os.environ.get("LCC_EXCERPT")
    text = (
        Path(excerpt).read_text()[:4000]
        if excerpt
        else (
            "The cat sat on the mat and looked out of the window. It was raining, and the street was "
            "empty. After a while the rain stopped, the sun came out, and children began to play."
        )
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").float()
    ids = tokenizer(text, return_tensors="pt").input_ids
    if tokenizer.bos_token_id is not None and name.startswith("gemma"):
        assert int((ids == tokenizer.bos_token_id).sum()) == 1
    with torch.no_grad():
        assert math.exp(model(ids, labels=ids).loss) < most
