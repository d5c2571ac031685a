"""Every method trains what it promises, nothing else, reloads as it was, merges or says why."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import finetune_cases as tuning
import pytest
import torch

from lcc.config.cards import decode
from lcc.config.yaml_files import choices
from lcc.core.errors import PreemptedError
from lcc.evaluation.predict import Predictor
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save
from lcc.models.reload_check import adapter_gate, probe_inputs, probe_logits, reload_gate
from lcc.stages.attach import Attach
from lcc.stages.finetune import Finetune
from lcc.stages.merge import Merge

STOP = 5  # between saves and evaluations
TASKS = {"causal": tuning.COPY, "seq2seq": tuning.PAIRS, "classify": tuning.MOOD}


@dataclass(frozen=True)
class Case:
    """A method and what is expected of it on the tiny model with `head`."""

    method: dict[str, Any]
    trains: tuple[str, ...]  # parts of the names of what may change
    lr: float
    head: str = "causal"
    stays: bool = False


LORA = ("lora_A", "lora_B")
PROMPT = ("prompt_encoder",)
HEAD = ("classifier",)
CASES = {
    "full": Case({"name": "full"}, ("",), 1e-2),
    "lora": Case({"name": "lora", "rank": 4}, LORA, 1e-2),
    "rslora": Case({"name": "lora", "rank": 8, "alpha": 8, "rslora": True}, LORA, 1e-2),
    "lora_plus": Case({"name": "lora", "rank": 4, "lr_ratio": 8}, LORA, 4e-3),
    "pissa": Case({"name": "lora", "rank": 4, "init": "pissa"}, LORA, 3e-3),
    "qlora": Case({"name": "qlora", "rank": 4}, LORA, 1e-2),
    "loftq": Case({"name": "qlora", "rank": 4, "init": "loftq"}, LORA, 1e-2),
    "dora": Case({"name": "dora", "rank": 4}, (*LORA, "lora_magnitude"), 1e-2),
    "adalora": Case({"name": "adalora", "rank": 2, "initial_rank": 4}, (*LORA, "lora_E"), 3e-2),
    "ia3": Case({"name": "ia3"}, ("ia3_l", *HEAD), 1e-1, head="classify"),
    "vera": Case({"name": "vera", "rank": 16}, ("vera_lambda",), 5e-2),
    "oft": Case({"name": "oft", "block_size": 8}, ("oft_",), 1e-2),
    "layernorm": Case({"name": "layernorm"}, ("ln_tuning_layers", *HEAD), 3e-2, "classify"),
    "bitfit": Case({"name": "bitfit"}, ("bias", *HEAD), 3e-2, head="classify"),
    "prompt_tuning": Case({"name": "prompt_tuning", "num_tokens": 4}, PROMPT, 0.1, "seq2seq", True),
    "p_tuning": Case({"name": "p_tuning", "num_tokens": 4}, PROMPT, 3e-2, "seq2seq", True),
    "prefix_tuning": Case({"name": "prefix_tuning", "num_tokens": 4}, PROMPT, 1e-1, "causal", True),
    "houlsby": Case({"name": "houlsby", "width": 8, "allow_lcc_loader": True},
                    (".down.", ".up.", "norm"), 1e-2, stays=True),
}  # fmt: skip


def finetune(method: Any, **options: Any) -> Finetune:
    told = {"batch_tokens": 96, "micro_tokens": 48, "max_length": 32, **options}
    return decode(Finetune, {**told, "method": method})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tuning.write_data(folder)
    for head in TASKS:
        tuning.write_model(folder / head, head)
    return folder


@dataclass
class Trained:
    """What a case left: its folder, measures, gate, logits, and tensors by whether they train."""

    folder: Path
    form: str
    measures: dict[str, Any]
    logits: torch.Tensor
    frozen: dict[str, torch.Tensor]
    changed: dict[str, torch.Tensor]
    gate: dict[str, Any]


def tensors(module: Any, *, trainable: bool) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad == trainable}


def train(world: Path, work: Path, case: Case, head: str, **options: Any) -> Trained:
    stage = finetune(case.method, lr=case.lr, **options)
    outcome = stage.run(tuning.bundle(world / head), tuning.context(work, world, TASKS[head]))
    bundle = outcome.bundle
    assert bundle is not None
    module, form, parent = bundle.module, bundle.card.form, world / head / "model"
    logits = probe_logits(module)
    frozen, changed = (tensors(module, trainable=flag) for flag in (False, True))
    bundle.with_card(dtype="float32")
    save(bundle, work / "model")
    gate = (
        adapter_gate(bundle, work / "adapter", parent=parent)
        if form == "adapter"
        else reload_gate(bundle, work / "model", parent=parent)
    )
    measures = {name: measure.value for name, measure in outcome.measures.items()}
    return Trained(work, form, measures, logits, frozen, changed, gate)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each case trained once, when the first test asks for it."""
    done: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in done:
            case = CASES[name]
            work = tmp_path_factory.mktemp(name)
            done[name] = train(world, work, case, case.head, epochs=4)
        return done[name]

    return get


def test_every_method_has_its_case() -> None:
    assert set(CASES) == set(choices("method"))


@pytest.mark.parametrize("name", CASES)
def test_training_lowers_the_validation_loss(trained: Any, name: str) -> None:
    found = trained(name).measures
    assert found["validation_loss_after"] < 0.97 * found["validation_loss_before"]


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_promised_trains(world: Path, trained: Any, name: str) -> None:
    case, found = CASES[name], trained(name)
    bundle = tuning.bundle(world / case.head)
    if case.head == "classify":
        bundle.with_head("classify", num_labels=2, seed=0, labels=tuning.MOOD.label_names)
    fresh = finetune(case.method).method.apply(bundle, device="cpu", dtype="float32", seed=0)
    begun = tensors(fresh, trainable=True)
    assert begun.keys() == found.changed.keys()
    assert all(any(part in n for part in case.trains) for n in begun)
    assert any(not torch.equal(begun[n], found.changed[n]) for n in begun)
    for n, before in tensors(fresh, trainable=False).items():
        assert torch.equal(before, found.frozen[n]), n


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_is_what_was_trained(trained: Any, name: str) -> None:
    assert trained(name).gate["reload_max_logit_difference"].value < 1e-4


MERGED = [n for n, case in CASES.items() if not case.stays and n not in ("full", "bitfit")]
STAYING = [n for n, case in CASES.items() if case.stays]


def whole(step: Any, world: Path, case: Case, found: Trained, work: Path) -> Any:
    inputs = {"adapter": found.folder}
    context = tuning.context(work, world, TASKS[case.head], inputs=inputs)
    return step.run(tuning.bundle(world / case.head), context)


@pytest.mark.parametrize("name", MERGED)
def test_merged_logits_are_the_trained_ones(world: Path, tmp_path: Path, trained: Any, name: str) -> None:
    case, found = CASES[name], trained(name)
    outcome = whole(Merge(), world, case, found, tmp_path)
    assert outcome.measures["max_abs_logit_difference"].value < 1e-4
    assert outcome.bundle.card.form == "dense"
    outcome.bundle.with_card(dtype="float32")
    save(outcome.bundle, tmp_path / "model")
    again = open_bundle(tmp_path / "model").load()
    torch.testing.assert_close(probe_logits(again), found.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", STAYING)
def test_what_cannot_be_merged_stays_beside_its_base(
    world: Path, tmp_path: Path, trained: Any, name: str
) -> None:
    case, found = CASES[name], trained(name)
    outcome = whole(Attach(), world, case, found, tmp_path)
    said = "The adapter stays beside its base: it is no change of any weight, so that none can"
    assert outcome.notes[0] == f"{said} take it in."
    save(outcome.bundle, tmp_path / "model")
    gate = reload_gate(outcome.bundle, tmp_path / "model", parent=None)
    assert gate["reload_max_logit_difference"].value < 1e-5
    again = open_bundle(tmp_path / "model")
    assert again.card.adapter and not again.card.headless
    assert again.card.loads_with == ("lcc" if name == "houlsby" else "transformers")
    torch.testing.assert_close(probe_logits(again.load()), found.logits, atol=1e-5, rtol=1e-5)


STRANGER = """
import json, sys

sys.modules["lcc"] = None  # importing lcc is an ImportError from here on
import peft, torch, transformers

for base, adapter, inputs in json.loads(sys.argv[1]):
    note = json.load(open(adapter + "/lcc_adapter.json"))
    auto = {"causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM",
            "classify": "AutoModelForSequenceClassification"}[note["head"]]
    options = {}
    if note["base"] == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    model = getattr(transformers, auto).from_pretrained(base, dtype=torch.float32, **options)
    if options:  # layers narrower than 64 are none that bitsandbytes multiplies on every CPU
        model = model.dequantize().float()
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logits = model(**{name: torch.tensor(ids) for name, ids in inputs.items()}).logits
    print(json.dumps(logits.flatten().tolist()))
"""


def test_plain_peft_on_the_plain_base_says_the_same(world: Path, trained: Any) -> None:
    names = [n for n in CASES if n != "houlsby" and trained(n).form == "adapter"]
    jobs = []
    for name in names:
        base = world / CASES[name].head / "model"
        asked = probe_inputs(open_bundle(base).load())
        inputs = {key: tensor.tolist() for key, tensor in asked.items()}
        jobs.append((str(base), str(trained(name).folder / "adapter"), inputs))
    command = [sys.executable, "-I", "-W", "ignore", "-c", STRANGER, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    for name, line in zip(names, lines, strict=True):
        theirs, ours = torch.tensor(json.loads(line)), trained(name).logits.flatten()
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4, msg=name)


@dataclass
class Stopping:
    """A tracker that asks this very process to stop after a step."""

    step: int

    def log(self, step: int, values: Any) -> None:
        if step == self.step:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "nobody watches for it"
            signal.raise_signal(signal.SIGTERM)

    def close(self) -> None: ...


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_training_ends_with_the_same_bits(
    world: Path, tmp_path: Path, trained: Any, name: str
) -> None:
    case, expected = CASES[name], trained(name)
    stage = finetune(case.method, lr=case.lr, epochs=4)
    context = tuning.context(tmp_path, world, TASKS[case.head], tracker=Stopping(STOP))
    with pytest.raises(PreemptedError, match=f"after step {STOP}"):
        stage.run(tuning.bundle(world / case.head), context)
    resumed = train(world, tmp_path, case, case.head, epochs=4)
    for n, tensor in expected.changed.items():
        assert torch.equal(resumed.changed[n], tensor), n


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning", "prefix_tuning", "houlsby"])
def test_what_stays_works_with_every_head(world: Path, tmp_path: Path, name: str, head: str) -> None:
    case = CASES[name]
    found = train(world, tmp_path / "t", case, head, max_steps=2)
    outcome = whole(Attach(), world, Case(case.method, (), 0, head), found, tmp_path / "a")
    save(outcome.bundle, tmp_path / "a" / "model")
    again = open_bundle(tmp_path / "a" / "model").load()
    torch.testing.assert_close(probe_logits(again), found.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_answers_behind_a_prompt_do_not_depend_on_the_batch(world: Path, tmp_path: Path, name: str) -> None:
    bundle = tuning.bundle(world / "causal")
    finetune({"name": name, "num_tokens": 4}, lr=1e-1, max_steps=6).run(
        bundle, tuning.context(tmp_path, world)
    )
    rows = tuning.context(tmp_path, world).data.rows("test")
    answers = [
        Predictor(bundle.module, bundle.tokenizer, tuning.COPY, batch_size=size).answers(
            rows, {"answers", "likelihood"}
        )
        for size in (1, 8)
    ]
    assert len({len(row["source"]) for row in rows}) > 1
    assert [a.output for a in answers[0]] == [a.output for a in answers[1]]
    assert [a.nats for a in answers[0]] == pytest.approx([a.nats for a in answers[1]], abs=1e-4)
