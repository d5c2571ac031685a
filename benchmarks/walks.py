"""Count the files of lcc that one piece of data passes, by tracing real commands on tiny models.

    python benchmarks/walks.py TREE [--only recipe,tensor,batch,chat]

TREE is a checkout: the folder that holds lcc/. Four walks, each in a process and a folder of its
own:

  recipe  `lcc run +recipe=tiny` from argv until the runner is called
  tensor  weights through width pruning, GPTQ and a GGUF export (`lcc run` of a recipe written here)
  batch   `lcc finetune` of a tiny model: from the rows of the data set to the first optimizer step
  chat    `lcc serve model=tiny_chat`: one /v1/chat/completions request from socket to reply

Only public commands are used, so two checkouts with other module names can be compared; the few
names that matter stand in the tables below. Two figures per walk:

  handed    files of which a function received the data as an argument (directly, or within three
            steps through containers and lcc's own objects)
  executed  files of which any function was called

Module bodies, and what importing a module calls, do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# --- names of the trees ------------------------------------------------------------------------
RUNNERS = {"run_pipeline"}  # the function that the recipe walk ends at
STAGE_RUNS = {  # qualified names of what opens the window of a walk
    "tensor": {"Width.run", "Calibrate.run", "Quantize.run", "Export.run"},
    "batch": {"Finetune.run"},
}
# -----------------------------------------------------------------------------------------------

DEPTH, BREADTH, LOOKS = 3, 200, 300
OPTIMIZED = 0x1  # of code objects: functions have it, bodies of modules and classes do not
MARKS = ("walkmarker", "tiny_llama", "tiny_en_zh", "width25_heal_w8")
NUMBERS = (0.00123456789, 0.24123456789)  # lr and ratio of the recipe walk
RECIPE = """# @package _global_
defaults:
  - override /model: tiny_llama
  - override /dataset: tiny_en_zh
  - override /task: translation
name: walk
plan:
  width: {criterion: wanda, ratio: 0.25, repair: ridge, accept_damage: true}
  quantize: {quantizer: gptq, bits: 4, group_size: 32, accept_damage: true}
  export: {format: gguf}
stages:
  compress: {}
"""


class Stop(BaseException):
    """The walk is over; nothing of lcc catches it."""


class Tracer:
    """Counts files while `is_open`; install() it before the threads of interest start."""

    def __init__(self, holds: Callable[[Any], bool]) -> None:
        import importlib.util

        package = importlib.util.find_spec("lcc")
        assert package is not None and package.submodule_search_locations
        self.package = package.submodule_search_locations[0] + "/"
        self.holds, self.is_open = holds, False
        self.executed, self.handed = set[str](), set[str]()
        self.looks = Counter[Any]()
        self.own = threading.local()
        self.opens: set[str] = set()  # qualified names that open the window
        self.num_open = 0
        self.on_call: Callable[[Any], None] = lambda code: None

    def install(self) -> None:
        threading.setprofile(self.profile)
        sys.setprofile(self.profile)

    def profile(self, frame: Any, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        path = code.co_filename
        if not path.startswith(self.package):
            if event == "call" and self.is_open:
                self.on_call(code)
            return
        own = self.own
        if not hasattr(own, "bodies"):
            own.bodies = 0
        if not code.co_flags & OPTIMIZED:
            own.bodies += 1 if event == "call" else -1
            return
        if own.bodies:
            return
        if code.co_qualname in self.opens:
            self.num_open += 1 if event == "call" else -1
            self.is_open = self.num_open > 0
        name = path.removeprefix(self.package)
        if event == "return":
            return
        self.on_call(code)
        if not self.is_open:
            return
        self.executed.add(name)
        if code.co_name.startswith("<"):  # a comprehension's one argument is an iterator
            return
        if self.looks[code] < (40 if name in self.handed else LOOKS):
            self.looks[code] += 1
            num = code.co_argcount + code.co_kwonlyargcount
            num += bool(code.co_flags & 0x4) + bool(code.co_flags & 0x8)  # *args and **kwargs
            values = frame.f_locals
            if any(reaches(values.get(n), self.holds, DEPTH) for n in code.co_varnames[:num]):
                self.handed.add(name)


def reaches(value: Any, holds: Callable[[Any], bool], depth: int) -> bool:
    """Whether `value` is the data, or holds it within `depth` steps."""
    if holds(value):
        return True
    if depth == 0 or value is None or isinstance(value, str | bytes | int | float | type):
        return False
    inner: Any = ()
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif type(value).__module__.partition(".")[0] in ("lcc", "starlette") and not callable(value):
        inner = list(getattr(value, "__dict__", {}).values())
    return any(reaches(one, holds, depth - 1) for one in inner[:BREADTH])


def holds_mark(value: Any) -> bool:
    if isinstance(value, str):
        return any(mark in value for mark in MARKS)
    if isinstance(value, bytes):
        return b"walkmarker" in value
    return isinstance(value, float) and value in NUMBERS


def holds_weight(value: Any) -> bool:
    torch = sys.modules.get("torch")
    numpy = sys.modules.get("numpy")
    if torch is None:
        return False
    if isinstance(value, torch.Tensor):
        return value.ndim >= 2
    if isinstance(value, torch.nn.Module):
        return any(p.ndim >= 2 for p in value.parameters())
    return numpy is not None and isinstance(value, numpy.ndarray) and value.ndim >= 2


def holds_ids(marks: list[list[int]], texts: tuple[str, ...]) -> Callable[[Any], bool]:
    """Texts, token ids in lists, or token ids in tensors."""
    spelled = [f",{','.join(map(str, ids))}," for ids in marks]

    def holds(value: Any) -> bool:
        torch = sys.modules.get("torch")
        if isinstance(value, str):
            return any(text in value for text in texts)
        if isinstance(value, bytes):
            return any(text.encode() in value for text in texts)
        if isinstance(value, list | tuple):
            if not value or not all(isinstance(n, int) for n in value[:3]) or len(value) < 3:
                return False
            row = f",{','.join(map(str, value))},"
            return any(mark in row for mark in spelled)
        if torch is not None and isinstance(value, torch.Tensor):
            if value.dtype.is_floating_point or value.ndim == 0 or value.numel() > 200_000:
                return False
            row = f",{','.join(map(str, value.flatten().tolist()))},"
            return any(mark in row for mark in spelled)
        return False

    return holds


def lcc(*words: str) -> int:
    from lcc.cli import main

    return main(list(words))


def walk_recipe() -> Tracer:
    tracer = Tracer(holds_mark)

    def ends(code: Any) -> None:
        if code.co_name in RUNNERS:
            tracer.is_open = False
            raise Stop

    tracer.on_call = ends
    words = [
        "run",
        "+recipe=tiny",
        "description=walkmarker",
        f"stages.finetune.lr={NUMBERS[0]}",
        f"plan.width.ratio={NUMBERS[1]}",
    ]
    tracer.is_open = True
    tracer.install()
    try:
        lcc(*words)
    except Stop:
        return tracer
    raise SystemExit("the runner was never called")


def walk_tensor() -> Tracer:
    Path("recipes").mkdir()
    Path("recipes/walk.yaml").write_text(RECIPE, encoding="utf-8")
    first = ["run", "model=tiny_llama", "dataset=tiny_en_zh", "task=translation"]
    if lcc(*first):
        raise SystemExit("the base could not be built")
    tracer = Tracer(holds_weight)
    tracer.opens = STAGE_RUNS["tensor"]
    tracer.install()
    code = lcc("run", "+recipe=walk")
    sys.setprofile(None)
    if code:
        raise SystemExit(f"lcc run ended in {code}")
    return tracer


def walk_batch() -> Tracer:
    words = ["model=tiny_llama", "dataset=tiny_en_zh", "task=translation"]
    if lcc("run", *words):
        raise SystemExit("the base could not be built")
    shown = subprocess.run(
        [sys.executable, "-m", "lcc", "data", "preview", *words, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(shown.stdout)
    # A batch may shift and pad a row: what is looked for lies inside it.
    ids = [[t["id"] for t in row["tokens"]][-8:-2] for row in rows]
    ids += [[t["id"] for t in row["tokens"]][2:8] for row in rows]
    tracer = Tracer(holds_ids(ids, tuple(row["completion"].strip() for row in rows)))
    tracer.opens = STAGE_RUNS["batch"]

    def ends(code: Any) -> None:
        path = code.co_filename
        if code.co_name == "step" and "/torch/optim/" in path and "scheduler" not in path:
            tracer.is_open = False
            raise Stop

    tracer.on_call = ends
    tracer.install()
    try:
        lcc("finetune", *words, "stages.finetune.epochs=1", "stages.finetune.batch_tokens=100000")
    except Stop:
        return tracer
    raise SystemExit("no optimizer step was taken")


def walk_chat() -> Tracer:
    from transformers import AutoTokenizer

    if lcc("run", "model=tiny_chat"):
        raise SystemExit("the model could not be built")
    folder = next(Path("runs").glob("*/*-base")) / "model"
    text = "walkmarker walkmarker"
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    tracer = Tracer(holds_ids([ids[2:-2]], ("walkmarker",)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    signal.signal(signal.SIGTERM, lambda *_: None)  # the server hands it on when it has stopped
    failed: list[str] = []

    def send() -> None:
        sys.setprofile(None)
        url = f"http://127.0.0.1:{port}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            for _ in range(600):
                try:
                    opener.open(f"{url}/healthz", timeout=5).read()
                    break
                except OSError:
                    time.sleep(0.1)
            time.sleep(0.5)  # the connection of the last poll is closed
            body = {
                "model": "tiny_chat",
                "max_tokens": 8,
                "temperature": 0,
                "messages": [{"role": "user", "content": text}],
            }
            request = urllib.request.Request(
                f"{url}/v1/chat/completions?walkmarker",
                data=json.dumps(body).encode(),
                headers={"content-type": "application/json"},
            )
            tracer.is_open = True
            reply = json.loads(opener.open(request, timeout=60).read())
            tracer.is_open = False
            assert reply["choices"][0]["finish_reason"], reply
        except Exception as error:
            failed.append(f"{error}: {getattr(error, 'read', lambda: b'')()!r}")
        finally:
            tracer.is_open = False
            os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=send)
    tracer.install()
    client.start()
    lcc("serve", f"model={folder}", f"serve.port={port}", "serve.max_tokens=8")
    client.join()
    sys.setprofile(None)
    if failed:
        raise SystemExit(failed[0])
    return tracer


WALKS = {"recipe": walk_recipe, "tensor": walk_tensor, "batch": walk_batch, "chat": walk_chat}


def trace(name: str, out: Path) -> None:
    tracer = WALKS[name]()
    sys.setprofile(None)
    facts = {part: sorted(getattr(tracer, part)) for part in ("handed", "executed")}
    out.write_text(json.dumps(facts), encoding="utf-8")


def show(name: str, facts: dict[str, Any]) -> None:
    handed, executed = facts["handed"], facts["executed"]
    print(f"{name}: handed {len(handed)}, executed {len(executed)} files", flush=True)
    for path in executed:
        print(f"  {'handed' if path in handed else '      '} {path}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path)
    parser.add_argument("--only", default=",".join(WALKS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        trace(options.one, options.tree)
        return
    tree = options.tree.resolve()
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix=f"walk-{name}-") as folder:
            out = Path(folder) / "facts.json"
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--one", name, str(out)],
                cwd=folder,
                env={**environment, "LCC_HOME": folder},
                capture_output=True,
                text=True,
                check=False,
            )
            if not out.is_file():
                print(f"{name}: FAILED\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
                continue
            show(name, json.loads(out.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
