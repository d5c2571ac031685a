"""Every checkpoint is a stranger's too: plain transformers, lcc absent, says the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lcc
from lcc.evaluation.generate import answer
from lcc.models.bundle import Bundle, open_bundle
from lcc.tasks.task import Decode

TEXTS = ["Save the file before you close the window.", "I liked this film very much."]
NUM_NEW = 8
RUNS = {
    "chain": ["+recipe=tiny"],
    "w4": ["+recipe=tiny", "plan=w4"],
    "nf4": ["+recipe=tiny", "plan=nf4"],
    "sparse24": ["+recipe=tiny", "plan=sparse24_wanda_heal"],
    "classifier": ["+recipe=sentiment_en"],
}
SMALL = ["scale=smoke", "threads=1", "~stages.eval", "~stages.bench"]

# What a stranger writes: transformers, the card beside the weights, and nothing of lcc's.
STRANGER = """
import json, sys
from pathlib import Path

sys.modules["lcc"] = None  # importing lcc is an ImportError from here on
import torch, transformers

def told(folder, **options):
    card = json.loads((Path(folder) / "lcc_card.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    auto = getattr(transformers, card["auto_class"])
    model = auto.from_pretrained(folder, dtype=torch.float32, **options).eval()
    for text in json.loads(sys.argv[2]):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
            ids = logits.argmax(-1)
            if card["head"] == "causal":
                ids = model.generate(**inputs, do_sample=False, max_new_tokens=int(sys.argv[3]))
        yield ids.flatten().tolist(), logits.flatten().tolist()

found = {}
for name, folder in json.loads(sys.argv[1]).items():
    found[name] = {"plain": list(told(folder))}
    quantization = json.loads((Path(folder) / "config.json").read_text()).get("quantization_config")
    if quantization and quantization["quant_method"] == "compressed-tensors":
        config = transformers.CompressedTensorsConfig(dequantize=True)
        found[name]["dequantized"] = list(told(folder, quantization_config=config))
assert not any(module.startswith("lcc.") for module in sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model folder of every checkpoint of small runs: all methods of saving there are."""
    root = tmp_path_factory.mktemp("elsewhere")
    found: dict[str, Path] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, words in RUNS.items():
            for step, artifact in lcc.run(*words, *SMALL).artifacts.items():
                if (artifact.path / "model").is_dir():
                    found[f"{name}.{step}"] = (root / artifact.path / "model").resolve()
    return {name: folder for name, folder in found.items() if not _is_twin(name, folder, found)}


def _is_twin(name: str, folder: Path, found: dict[str, Path]) -> bool:
    """Whether an earlier run made the very same checkpoint."""
    return next(n for n, other in found.items() if other == folder) != name


@pytest.fixture(scope="module")
def elsewhere(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process without lcc reads and says, for every folder."""
    paths = json.dumps({name: str(folder) for name, folder in folders.items()})
    command = [sys.executable, "-I", "-c", STRANGER, paths, json.dumps(TEXTS), str(NUM_NEW)]
    done = subprocess.run(
        command, cwd=tmp_path_factory.mktemp("stranger"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_forms_of_checkpoints_are_among_them(folders: dict[str, Path]) -> None:
    cards = [open_bundle(folder).card for folder in folders.values()]
    assert {card.format for card in cards} >= {"safetensors", "compressed-tensors", "bitsandbytes"}
    assert {card.head for card in cards} >= {"causal", "classify"}
    assert any(card.sparse for card in cards)


def test_every_checkpoint_says_the_same_without_lcc(
    folders: dict[str, Path], elsewhere: dict[str, dict[str, Any]]
) -> None:
    for name, folder in folders.items():
        assert set(elsewhere[name]) <= {"plain", "dequantized"}
        for way, theirs in elsewhere[name].items():
            bundle = open_bundle(folder)
            module = bundle.load(native=way == "plain")
            for text, (their_ids, their_logits) in zip(TEXTS, theirs, strict=True):
                ids, logits = _told(module, bundle, text)
                assert ids.tolist() == their_ids, f"{name}, {way}"
                assert torch.allclose(logits, torch.tensor(their_logits), atol=1e-4), name


def test_greedy_answers_of_lcc_are_those_of_plain_transformers(
    folders: dict[str, Path], elsewhere: dict[str, dict[str, Any]]
) -> None:
    for name, folder in folders.items():
        bundle = open_bundle(folder)
        if bundle.card.head != "causal":
            continue
        ways = elsewhere[name]
        theirs = [ids for ids, _ in ways.get("dequantized", ways["plain"])]
        prompts = bundle.tokenizer(TEXTS).input_ids
        module = bundle.load(native="dequantized" not in ways)
        ours = answer(module, bundle.tokenizer, prompts, decode=Decode(max_new_tokens=NUM_NEW))
        for prompt, whole, one in zip(prompts, theirs, ours, strict=True):
            assert whole[: len(prompt)] == prompt
            new = str(bundle.tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True))
            assert one.text == new.strip(), name


def test_lcc_reads_a_packed_checkpoint_without_a_word(folders: dict[str, Path]) -> None:
    packed = next(f for f in folders.values() if open_bundle(f).card.format == "compressed-tensors")
    code = "import sys, pathlib; from lcc.models.bundle import open_bundle; "
    code += "open_bundle(pathlib.Path(sys.argv[1])).load()"
    command = [sys.executable, "-c", code, str(packed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def _told(module: Any, bundle: Bundle, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The greedy tokens after a text, or its class, and the logits, as this process has them."""
    inputs = bundle.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = module(**inputs).logits
        ids = logits.argmax(-1)
        if bundle.card.head == "causal":
            ids = module.generate(**inputs, do_sample=False, max_new_tokens=NUM_NEW)
    return ids.flatten(), logits.flatten().float()
