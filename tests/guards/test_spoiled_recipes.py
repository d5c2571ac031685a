"""Every mistake gets one clear message and its exit code, before anything runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import lcc
from lcc.cli import main
from lcc.core.errors import did_you_mean

HEAD = """# Spoiled on purpose, below.
defaults:
  - override /model: tiny_llama
  - override /dataset: tiny_en_zh
  - override /task: translation
  - override /plan: width25_heal_w8
"""
FINE = HEAD + "stages: {finetune: {}, compress: {}}\n"
REFUSED = (
    "is refused: a recipe names things from configs/ and never classes, callbacks or Hydra's own settings."
)
ALIAS = (
    "is refused (aliases can blow up in memory or contain themselves); write the value out or use"
    " ${other.key}."
)
UNREADABLE = (
    "its value cannot be read; allowed are a number, true, false, null, text, [a, list],"
    " {a: mapping} and, with -m, 1,2 or range(1,3) or choice(a,b). Put text with special"
    " characters in quotes."
)

# A recipe file's text after HEAD, the exit code, the message after `recipes/x.yaml`.
FILES = {
    "unknown key of a stage": ("stages:\n  finetune: {epoch: 2}\n", 2,
        ":8: stages.finetune.epoch: unknown key 'epoch'. Did you mean 'epochs'?"),
    "unknown key of the plan": ("stages: {compress: {}}\nplan:\n  width: {ratoi: 0.3}\n", 2,
        ":9: plan.width.ratoi: unknown key 'ratoi'. Did you mean 'ratio'?"),
    "unknown key of a noun": ("stages: {finetune: {}}\nmodel:\n  hed: causal\n", 2,
        ":9: model.hed: unknown key 'hed'. Did you mean 'head'?"),
    "unknown key of a noun's source": (
        "stages: {finetune: {}}\ndataset:\n  source:\n    pth: x\n", 2,
        ":10: dataset.source.pth: unknown key 'pth'. Did you mean 'path'?"),
    "unknown key on top": ("stages: {finetune: {}}\nsede: 1\n", 2,
        ":8: sede: unknown key 'sede'. Did you mean 'seed'?"),
    "a key in capitals": ("stages:\n  finetune: {Epochs: 2}\n", 2,
        ":8: stages.finetune.Epochs: unknown key 'Epochs'. Did you mean 'epochs'?"),
    "a key that is null": ("null: 1\n", 2,
        ": a key is null or no word; write every key as text."),
    "a list for a name": ("stages: {finetune: {}}\ntask: {name: [a]}\nscale: {}\n", 2,
        ':8: task.name: expected text, got ["a"].'),
    "text for a number": ("stages: {finetune: {}}\nclip:\n  max_norm: lots\n", 2,
        ':9: clip.max_norm: expected a number, got "lots".'),
    "true for a number": ("stages: {finetune: {}}\nseed: true\n", 2,
        ":8: seed: expected a whole number, got true."),
    "infinity for a number": ("stages: {finetune: {lr: .inf}}\n", 2,
        ":7: stages.finetune.lr: input should be a finite number, got Infinity."),
    "out of range": ("stages: {compress: {}}\nplan:\n  width:\n    ratio: 1.5\n", 2,
        ":10: plan.width.ratio: input should be less than 1, got 1.5."),
    "unknown criterion": ("stages: {compress: {}}\nplan:\n  width:\n    criterion: wnda\n", 2,
        ":10: plan.width.criterion: no criterion is named 'wnda'. Did you mean 'wanda'?"),
    "unknown stage": ("stages:\n  finetun: {}\n", 2,
        ":8: stages.finetun: no stage is named 'finetun'. Did you mean 'finetune'?"),
    "unknown kind": ("stages:\n  again: {kind: finetun}\n", 2,
        ":8: stages.again.kind: no stage is named 'finetun'. Did you mean 'finetune'?"),
    "a stage that is a number": ("stages:\n  finetune: 3\n", 2,
        ":8: stages.finetune: expected a mapping of options, got 3."),
    "stages as a list": ("stages:\n  - finetune\n", 2,
        ":7: stages: expected a mapping of options, got ['finetune'];"
        " write each stage as 'NAME: {}'."),
    "a choice outside of defaults": ("stages: {finetune: {}}\nmodel: tiny_bert\n", 2,
        ":8: model: expected a mapping of options, got 'tiny_bert';"
        " choose an entry under defaults: '- override /model: NAME'."),
    "a step's name with a path": ("stages:\n  ../up: {kind: finetune}\n", 2,
        ":8: stages.../up: '../up' is no step's name; letters, digits, - and _ are allowed."),
    "a run's name with a path": ("stages: {finetune: {}}\nname: ../../up\n", 2,
        r""":8: name: string should match pattern '^\w[\w.\-]*$', got "../../up"."""),
    "placed before nothing": ("stages:\n  finetune: {}\n  vocab: {before: nostep}\n", 2,
        ":9: stages.vocab.before: no step is named 'nostep'. Allowed: finetune."),
    "placed before and after": (
        "stages:\n  finetune: {}\n  vocab: {before: finetune, after: finetune}\n", 2,
        ":9: stages.vocab.after: give before or after, not both."),
    "a teacher that is its own model": ("stages:\n  finetune: {teacher: base}\n", 2,
        ":8: stages.finetune.teacher: 'base' is the very model this step trains;"
        " choose an earlier one."),
    "an unknown teacher": ("stages: {compress: {}}\nplan:\n  heal: {teacher: plan_inptu}\n", 2,
        ":9: plan.heal.teacher: no model is named 'plan_inptu'. Did you mean 'plan_input'?"),
    "quantized before it is narrowed": (
        "stages: {compress: {}}\nplan:\n  quantize: {before: width}\n", 2,
        ":8: plan.width: takes a dense model, but 'quantize' before it makes a packed one;"
        " place 'width' before it."),
    "an unknown checkpoint": ("stages:\n  finetune: {}\n  bench: {checkpoints: [fintune]}\n", 2,
        ":9: stages.bench.checkpoints: no checkpoint 'fintune'. Did you mean 'finetune'?"),
    "Hydra's settings": ("stages: {finetune: {}}\nhydra:\n  run: {dir: /tmp}\n", 5,
        f":8: hydra: 'hydra' {REFUSED}"),
    "a class to construct": (
        "stages:\n  finetune:\n    optimizer:\n      _target_: os.system\n", 5,
        f":10: stages.finetune.optimizer._target_: '_target_' {REFUSED}"),
    "the environment": ("stages: {finetune: {}}\nname: ${oc.env:HOME}\n", 5,
        ":8: name: '${oc.env:HOME}' calls a resolver, which could reach the environment;"
        " only ${other.key} is allowed."),
    "an interpolation of nothing": ("stages: {finetune: {}}\nname: ${no.key}\n", 2,
        ":8: name: interpolation key 'no.key' not found."),
    "an interpolation of itself": ("stages: {finetune: {}}\nname: ${name}\n", 2,
        ":8: name: recursive interpolation detected."),
    "an alias bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", 5, f":8: alias '*a' {ALIAS}"),
    "an alias of itself": ("a: &a\n  b: *a\n", 5, f":8: alias '*a' {ALIAS}"),
    "too large": ("#" + "x" * 300_000, 5, ": larger than 256 KB; a recipe is a page of text."),
    "too deep": ("a: " + "[" * 5000 + "]" * 5000, 5, ":7: deeper than 24 levels; refused."),
    "broken syntax": ("stages: {finetune: {epochs: 1\n", 2,
        ":8: not valid YAML: expected ',' or '}', but got '<stream end>'."),
    "a key given twice": ("seed: 1\nseed: 2\n", 2, ":8: not valid YAML: found duplicate key seed."),
    "code in a tag": ("a: !!python/object/apply:os.system [ls]\n", 2,
        ":7: not valid YAML: could not determine a constructor for the tag"
        " 'tag:yaml.org,2002:python/object/apply:os.system'."),
}  # fmt: skip

# Whole files.
WHOLE = {
    "a list": ("- a\n", 2, ": must be a mapping of keys to values, not a list or a word."),
    "a word": ("hello\n", 2, ": must be a mapping of keys to values, not a list or a word."),
    "an unknown choice": ("defaults:\n  - override /method: lorra\n", 2,
        ":2: method: no method is named 'lorra'. Did you mean 'lora'?"),
    "an unknown group": ("defaults:\n  - override /modle: tiny_llama\n", 2,
        ":2: defaults: no group is named 'modle'. Did you mean 'model'?"),
    "a choice without override": ("defaults:\n  - /model: tiny_llama\n", 2,
        ":2: defaults: got '/model: tiny_llama'; write 'override /model: tiny_llama'."),
    "an unknown parent": ("defaults:\n  - tinny\n", 2,
        ":2: defaults: recipe: no recipe is named 'tinny'. Did you mean 'tiny'?"),
    "its own parent": ("defaults: [x]\n", 2,
        ":1: defaults: got 'x'; write the name of another recipe or 'override /group: NAME'."),
    "a number among defaults": ("defaults: [3]\n", 2,
        ":1: defaults: got 3; write the name of another recipe or 'override /group: NAME'."),
    "defaults as a mapping": ("defaults: {model: x}\n", 2,
        ":1: defaults: expected a list of '- override /group: NAME', got {'model': 'x'}."),
    "Hydra's settings in defaults": ("defaults:\n  - override /hydra/launcher: joblib\n", 5,
        ":2: defaults: 'override /hydra/launcher': a recipe never changes Hydra's own settings."),
}  # fmt: skip

# Command lines; `preview +recipe=x` with the fine recipe goes before those without a verb.
WORDS = {
    "clip.max_nrom=1": (2, "command line 'clip.max_nrom=1': clip.max_nrom: unknown key 'max_nrom'."
                           " Did you mean 'max_norm'?"),
    "+stages.finetune.epoch=1": (2, "command line 'stages.finetune.epoch=1': stages.finetune.epoch:"
                                    " unknown key 'epoch'. Did you mean 'epochs'?"),
    "stages.finetune.epochs=true": (2, "command line 'stages.finetune.epochs=true':"
                                       " stages.finetune.epochs: expected a number, got true."),
    "plan.width.ratio=1.5": (2, "command line 'plan.width.ratio=1.5': plan.width.ratio:"
                                " input should be less than 1, got 1.5."),
    "plan.quantize.bits=5": (2, "command line 'plan.quantize.bits=5': plan.quantize.bits:"
                                " 5 is not one of 2, 3, 4 or 8."),
    "plan.quantize.group_size=7": (2, "command line 'plan.quantize.group_size=7':"
        " plan.quantize.group_size: input should be greater than or equal to 8, got 7."
        " Or: 7 is not one of 'auto' or 'channel'."),
    "seed.x=4": (2, "command line 'seed.x=4': seed: expected a whole number, got {\"x\": 4}."),
    "method=lorra": (2, "method: no method is named 'lorra'. Did you mean 'lora'?"),
    "plan=width50": (2, "plan: no plan is named 'width50'. Did you mean 'width25_heal'?"),
    "model=tiny_lama": (2, "model: no model is named 'tiny_lama'. Did you mean 'tiny_llama'?"),
    "dataset.source.path=no.jsonl": (2, "command line 'dataset.source.path=no.jsonl':"
        " dataset.source: give exactly one of path, paths and packaged, got path and packaged."),
    "hydra.run.dir=/tmp": (5, "'hydra.run.dir=/tmp': Hydra's own settings are not taken from the"
                              " command line."),
    "+stages.finetune._target_=os.system": (5, "'+stages.finetune._target_=os.system': a recipe"
                                               " never names classes to construct."),
    "name=${oc.env:HOME}": (5, "'name=${oc.env:HOME}' calls a resolver; only ${other.key} is"
                               " allowed."),
    "seed=1,2": (2, "'seed=1,2' has several values; add -m to run one after another."),
    "seed=range(": (2, f"'seed=range(': {UNREADABLE}"),
    "~plan.heel": (2, "'~plan.heel': nothing stands at 'plan.heel' to take away."
                      " Did you mean 'plan.heal'?"),
    "recipe=tiny": (2, "recipe: got x and tiny; choose one."),
    "--jsn": (2, "unknown flag '--jsn'. Did you mean '--json'?"),
}  # fmt: skip
COMMANDS = {
    "rnu": (2, "no verb is named 'rnu'. Did you mean 'run'?"),
    "recipes lst": (2, "recipes: no action is named 'lst'. Did you mean 'ls'?"),
    "run +recipe=tinny": (2, "recipe: no recipe is named 'tinny'. Did you mean 'tiny'?"),
    "run": (2, "nothing to run: name a recipe (lcc run +recipe=NAME; lcc recipes ls)."),
    "eval": (2, "no run in this folder yet; start one with lcc run +recipe=NAME."),
    "run -m +recipe=x seed=range(1,x)": (2, f"'seed=range(1,x)': {UNREADABLE}"),
    "preview +recipe=x dataset=local dataset.source.path=no.jsonl": (
        2,
        "command line 'dataset.source.path=no.jsonl': dataset.source.path: no file 'no.jsonl'.",
    ),
    "bench +recipe=x": (2, "this recipe has no bench step; its stages are finetune, compress."),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "x.yaml").write_text(FINE, encoding="utf-8")
    return tmp_path


def _told(capsys: pytest.CaptureFixture[str], words: list[str]) -> tuple[int, str]:
    code = main(words)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lcc: ") and captured.err.endswith("\n")
    return code, captured.err.removeprefix("lcc: ").removesuffix("\n")


@pytest.mark.parametrize("name", [*FILES, *WHOLE])
def test_a_spoiled_file_is_told_by_place_and_key(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, code, message = WHOLE[name] if name in WHOLE else FILES[name]
    whole = text if name in WHOLE else HEAD + text
    (folder / "recipes" / "x.yaml").write_text(whole, encoding="utf-8")
    assert _told(capsys, ["preview", "+recipe=x"]) == (code, f"recipes/x.yaml{message}")


@pytest.mark.parametrize("word", WORDS)
def test_a_spoiled_word_is_told_by_word_and_key(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _told(capsys, ["preview", "+recipe=x", word]) == WORDS[word]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_spoiled_command_is_told(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _told(capsys, command.split()) == COMMANDS[command]


def test_a_folder_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = _told(capsys, ["preview", "+recipe=x", "model=./nofolder"])
    known = [p.stem for p in (Path(lcc.__file__).parents[1] / "configs/model").glob("*.yaml")]
    allowed = did_you_mean("./nofolder", known)
    assert (code, message) == (2, f"model: './nofolder' is no folder and no card{allowed}")


@pytest.mark.parametrize("card", ["local", "hub"])
def test_a_card_that_waits_for_a_value_says_which(card: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = _told(capsys, ["preview", "+recipe=x", f"model={card}"])
    assert code == 2
    assert message.endswith(
        f"configs/model/{card}.yaml:5: model.source: nothing is given; write model.source.path="
        "FOLDER, or model.source.hub=OWNER/NAME with model.source.revision=COMMIT."
    )


def test_a_mistake_in_a_card_of_ones_own_is_told_with_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "configs" / "plan").mkdir(parents=True)
    mine = folder / "configs" / "plan" / "mine.yaml"
    mine.write_text("# mine\nwidth: {ratio: 2}\n", encoding="utf-8")
    assert _told(capsys, ["preview", "+recipe=x", "plan=mine"]) == (
        2,
        "configs/plan/mine.yaml:2: plan.width.ratio: input should be less than 1, got 2.",
    )
    shutil.rmtree(folder / "configs")
    assert _told(capsys, ["preview", "+recipe=x", "plan=mine"])[0] == 2


def test_smoke_scale_hides_no_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoiled = HEAD + "stages:\n  finetune: {epochs: soon}\n"
    (folder / "recipes" / "x.yaml").write_text(spoiled, encoding="utf-8")
    assert _told(capsys, ["preview", "+recipe=x", "scale=smoke"]) == (
        2,
        'recipes/x.yaml:8: stages.finetune.epochs: expected a number, got "soon".',
    )


def test_validate_tells_the_same_and_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipes" / "y.yaml").write_text(HEAD + "stages: {finetun: {}}\n", encoding="utf-8")
    assert main(["recipes", "validate", "y", "x"]) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("y: recipes/y.yaml:7: stages.finetun: no stage is named 'finetun'.")
    assert second.startswith("x: fine, ")
