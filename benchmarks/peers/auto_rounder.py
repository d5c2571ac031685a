"""4-bit weights by auto-round's sign gradient descent: runs in its own environment, without lcc.

`python auto_rounder.py JOB.json`; the job: model, ids (JSON file of token rows), out, bits,
group_size, iters, threads. The weights are saved as they dequantize.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def rounded(model: Any, tokenizer: Any, rows: list[list[int]], job: dict[str, Any]) -> Any:
    import torch
    from auto_round import AutoRound

    length = min(len(row) for row in rows)
    seen = torch.ones(1, length, dtype=torch.long)
    texts = [{"input_ids": torch.tensor([row[:length]]), "attention_mask": seen} for row in rows]
    scheme = {"bits": job["bits"], "group_size": job["group_size"], "sym": True, "data_type": "int"}
    made = AutoRound(
        model,
        tokenizer,
        scheme=scheme,
        iters=job["iters"],
        seqlen=length,
        nsamples=len(rows),
        batch_size=4,
        dataset=texts,
        device_map="cpu",
        enable_torch_compile=False,
    )
    quantized, _ = made.quantize()
    return quantized


def main() -> None:
    import torch
    import transformers

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    rows = json.loads(Path(job["ids"]).read_text(encoding="utf-8"))
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    started = time.perf_counter()
    names = set(model.state_dict())
    model = rounded(model, tokenizer, rows, job)
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    plain = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype="float32")
    state = model.state_dict()
    assert names <= set(state), sorted(names - set(state))[:3]
    plain.load_state_dict({name: state[name] for name in names})
    plain.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
