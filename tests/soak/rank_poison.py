"""Two processes train together and one of them spoils its gradients: neither takes them up.

python tests/soak/rank_poison.py FOLDER NUMBER
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # its tiny training

import nursery
import torch
from poison import Watched
from training_cases import model, training

from lcc.distributed.dist import Dist


def rank_runs(folder: Path, rank: int, number: int) -> int:
    """Trainings of this process beside the other one, until `number` steps were spoilt."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    dice, found = random.Random("one rank"), {"injections": 0, "taken_up": list[str]()}
    while found["injections"] < number:
        first, source = dice.randint(2, 8), dice.randrange(2)
        steps = {first + i for i in range(dice.randint(1, 3))}
        place = folder / f"run-{found['injections']}"
        run = training(
            place,
            model(),
            dist=Dist(rank, 2),
            save_every=1,
            epochs=3,
            max_steps=12,
            max_nonfinite=9,
            eval_every=5,
        )
        draws = random.Random(f"values {first}")
        watched = Watched(run, "own sum", steps, draws, is_source=rank == source)
        counters = run.run()
        found["injections"] += len(steps)
        found["taken_up"] += watched.wrong
        if counters.nonfinite_steps != len(steps):
            found["taken_up"].append(f"{counters.nonfinite_steps} of {len(steps)} were counted")
    torch.distributed.barrier()
    (folder / f"found-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def main(folder: Path, number: int) -> dict[str, Any]:
    """What both processes found."""
    pair = [
        nursery.fork(lambda r=rank: rank_runs(folder, r, number), folder / f"rank-{rank}.log")
        for rank in (0, 1)
    ]
    codes = [child.ended() for child in pair]
    assert codes == [0, 0], [child.told() for child in pair]
    told = [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    return {"injections": told[0]["injections"], "taken_up": told[0]["taken_up"] + told[1]["taken_up"]}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
