"""min_p from a task's YAML, a command's words or a request's body to the token that is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lcc.config.cards import Mistakes, decode
from lcc.core.errors import DataError
from lcc.inference.batch import BatchInference
from lcc.inference.sampler import sample, sampler
from lcc.inference.session import SAMPLING_ABILITIES, BaseSession, Request
from lcc.tasks.task import Decode, Sampling

NUM = 4000
SETTINGS = [
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.7, "min_p": 0.05},
    {"temperature": 2.0, "min_p": 0.3, "top_k": 20},
    {"temperature": 1.5, "min_p": 0.02, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.2, "top_k": 12, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 1.0},
]


def warped(scores: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Probabilities (vocabulary,) after the library's own warpers, in the order of its `generate`."""
    warpers: list[Any] = [transformers.TemperatureLogitsWarper(options["temperature"])]
    if "top_k" in options:
        warpers.append(transformers.TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        warpers.append(transformers.TopPLogitsWarper(options["top_p"]))
    warpers.append(transformers.MinPLogitsWarper(options["min_p"]))
    row = scores[None]
    for warper in warpers:
        row = warper(torch.zeros(1, 1, dtype=torch.long), row)
    return row[0].softmax(-1)


@pytest.mark.parametrize("options", SETTINGS, ids=lambda one: "-".join(f"{k}{v}" for k, v in one.items()))
def test_draws_follow_the_librarys_own_warpers(options: dict[str, Any]) -> None:
    scores = torch.randn(200, generator=torch.Generator().manual_seed(3)) * 2
    settings = transformers.GenerationConfig()
    rows = [
        sampler(Request((1,), 1, Sampling(**options), seed=seed), [1], 1, settings) for seed in range(NUM)
    ]
    counts = Counter(token.id for token in sample(scores.expand(NUM, -1), rows))
    expected = warped(scores, options)
    assert set(counts) <= set(expected.nonzero().flatten().tolist())
    for token, share in enumerate(expected.tolist()):
        # Five standard deviations of a share of so many draws.
        assert abs(counts[token] / NUM - share) <= 5 * (share * (1 - share) / NUM) ** 0.5


def test_the_task_says_it_and_what_is_no_share_is_refused() -> None:
    assert decode(Sampling, {"temperature": 1.0, "min_p": 0.1}, "task.sampling").min_p == 0.1
    with pytest.raises(Mistakes, match=r"task\.sampling\.min_p"):
        decode(Sampling, {"min_p": 1.5}, "task.sampling")


def test_a_request_has_what_the_task_says() -> None:
    sampling = Sampling(temperature=0.5, min_p=0.1)
    request = Request.of(Decode(num_beams=2, stop=("x",)), sampling, [4, 5], limit=7, seed=3)
    assert request == Request((4, 5), 7, sampling, num_beams=2, seed=3, stop=("x",))


@pytest.mark.parametrize("name", list(SAMPLING_ABILITIES))
def test_an_engine_that_lacks_a_setting_refuses_it(name: str) -> None:
    """A field of `Sampling` with an ability of its own is a row of the table, and nothing else."""
    ability = SAMPLING_ABILITIES[name]
    request = Request((1,), 1, Sampling(**{name: 0.5}))

    class Session(BaseSession):
        abilities = frozenset(SAMPLING_ABILITIES.values()) - {ability}

        def _num_admitted(self) -> int:
            return 0

    card: Any = type("card", (), {"head": "causal", "name": "m"})
    session: Any = Session(card, None, context=8, slots=1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"^this engine has no {ability}; use engine=transformers.$"):
        session._require(request)
    task: Any = type(
        "task", (), {"head": "causal", "is_ranked": False, "decode": Decode(), "sampling": request.sampling}
    )
    with pytest.raises(DataError, match=f"^this engine has no {ability}; use engine=transformers.$"):
        BatchInference(session, task).require()
    session.abilities = session.abilities | {ability}
    session._require(request)


def test_words_of_infer_are_the_fields_of_the_task(tmp_path: Path) -> None:
    from lcc.cli.commands.infer import InferOptions, split

    words = ["min_p=0.2", "max_length_ratio=1.5", "stop=[a,b]", "slots=3", "model=x"]
    own, rest = split(words)
    options = InferOptions.decoded(own)
    assert rest == ["model=x"] and options.slots == 3
    assert options.replaced(Sampling(top_k=4)) == Sampling(top_k=4, min_p=0.2)
    assert options.replaced(Decode()) == Decode(max_length_ratio=1.5, stop=("a", "b"))
    with pytest.raises(Mistakes, match="min_p"):
        InferOptions.decoded({"min_p": 2})
