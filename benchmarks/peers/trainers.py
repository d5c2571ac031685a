"""One training by TRL or transformers, timed: `python trainers.py JOB.json`, facts on stdout.

The job: system (a name below), model, rows, method (lora or full), head, batch_tokens, batch_rows,
epochs, lr, seed, threads. Never imports lcc.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM = 1  # steps that are not timed
GROUPED = {"train_sampling_strategy": "group_by_length"}
SYSTEMS: dict[str, dict[str, Any]] = {  # what the documentation offers beside the defaults
    "trainer": {},
    "trainer_grouped": GROUPED,
    "trl_packed": {"packing": True},
    "trl_grouped": GROUPED,
}


def adapted(job: dict[str, Any]) -> Any:
    """The model in float32, with a LoRA of all linear layers drawn from the seed where asked."""
    import peft
    import torch
    import transformers

    kind = "AutoModelForSeq2SeqLM" if job["head"] == "seq2seq" else "AutoModelForCausalLM"
    model = getattr(transformers, kind).from_pretrained(job["model"], dtype=torch.float32)
    if job["method"] == "full":
        return model
    config = peft.LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    torch.manual_seed(job["seed"])
    return peft.get_peft_model(model, config)


def arguments(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """One optimizer step holds about as many tokens in every system."""
    packed = SYSTEMS[job["system"]].get("packing", False)
    rows = 1 if packed else job["batch_rows"]
    return {
        "output_dir": folder,
        "num_train_epochs": job["epochs"],
        "learning_rate": job["lr"],
        "per_device_train_batch_size": rows,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "seed": job["seed"],
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        **SYSTEMS[job["system"]],
    }


def trainer_of(job: dict[str, Any], folder: str) -> Any:
    import datasets
    import transformers

    rows = json.loads(Path(job["rows"]).read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model, data = adapted(job), datasets.Dataset.from_list(rows)
    given: dict[str, Any] = {"model": model, "train_dataset": data, "processing_class": tokenizer}
    if job["system"].startswith("trl"):
        import trl

        # A packed row is as long as a step: one document never crosses into the next.
        config = trl.SFTConfig(max_length=job["batch_tokens"], **arguments(job, folder))
        return trl.SFTTrainer(args=config, **given)
    pairs = job["head"] == "seq2seq"
    prefix = "Seq2Seq" if pairs else ""
    config = getattr(transformers, f"{prefix}TrainingArguments")(**arguments(job, folder))
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, model=model if pairs else None)
    trainer = getattr(transformers, f"{prefix}Trainer")
    return trainer(args=config, data_collator=collator, **given)


def train(job: dict[str, Any], folder: str) -> dict[str, Any]:
    import transformers

    trainer = trainer_of(job, folder)
    ends: list[tuple[float, float]] = []
    tokens: list[int] = []
    collate, pairs = trainer.data_collator, job["head"] == "seq2seq"

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        mask = batch.get("attention_mask")
        useful = int(mask.sum()) if mask is not None else batch["input_ids"].numel()
        tokens.append(useful + (int((batch["labels"] != -100).sum()) if pairs else 0))
        return batch

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    trainer.data_collator = counted
    trainer.add_callback(Clock())
    trainer.train()
    (wall, cpu), (wall_end, cpu_end) = ends[WARM - 1], ends[-1]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "losses": losses,
        "tokens": sum(tokens[WARM : len(ends)]),
        "seconds": wall_end - wall,
        "cpu_seconds": cpu_end - cpu,
        "peak_bytes": peak,
    }


def main() -> None:
    import torch
    import transformers

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        facts = train(job, folder)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
