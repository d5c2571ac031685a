"""Classes and translations: the endpoints of tasks that are no conversation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import served_models as serving

from lcc.core.errors import RecipeError
from lcc.evaluation.predict import Predictor
from lcc.models.bundle import open_bundle
from lcc.pipeline.recipe import load_recipe

ROWS = ["open", "the file is lost", "打开"]


def task(name: str, *words: str) -> Any:
    return load_recipe([f"task={name}", *words]).task


def asked(running: Any, path: str, **body: Any) -> Any:
    with running.client() as client:
        reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


def test_a_class_is_the_one_that_the_classifier_chooses(tmp_path: Path, serve: Callable[..., Any]) -> None:
    folder = serving.classifier(tmp_path / "m")
    own = task("sentiment", "task.labels=[bad,good]")
    bundle = open_bundle(folder)
    rows = [{"id": str(i), "text": text, "label": ""} for i, text in enumerate(ROWS)]
    expected = Predictor(bundle.load(), bundle.tokenizer, own).predicted_classes(rows)
    for given in (own, None):
        with serve(folder, task=given) as running:
            found = asked(running, "/v1/classify", input=ROWS)
        assert [one["label"] for one in found] == expected
        assert all(abs(sum(one["probabilities"].values()) - 1) < 1e-6 for one in found)


def test_label_words_are_ranked_as_in_evaluation(tmp_path: Path, serve: Callable[..., Any]) -> None:
    folder = serving.chatter(tmp_path / "m", template=None)
    own = task("sentiment_words", "task.labels=[negative,positive]")
    bundle = open_bundle(folder)
    rows = [{"id": str(i), "text": text, "label": ""} for i, text in enumerate(ROWS)]
    expected = Predictor(bundle.load(), bundle.tokenizer, own).ranked(rows)
    with serve(folder, task=own) as running:
        found = asked(running, "/v1/classify", input=ROWS)
    assert [one["label"] for one in found] == expected


@pytest.mark.parametrize(
    "kind, name", [(serving.translator, "translation_seq2seq"), (serving.chatter, "translation")]
)
def test_a_translation_is_the_one_that_evaluation_reads(
    kind: Any, name: str, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    folder, own = kind(tmp_path / "m"), task(name)
    bundle = open_bundle(folder)
    rows = [{"id": str(i), "source": text, "target": ""} for i, text in enumerate(ROWS)]
    model = Predictor(bundle.load(), bundle.tokenizer, own)
    expected = [one.text for one in model.generated(rows)]
    with serve(folder, task=own) as running:
        found = asked(running, "/v1/translate", input=ROWS)
        with (
            running.client() as client,
            client.stream("POST", "/v1/translate", json={"input": ROWS[0], "stream": True}) as reply,
        ):
            events = [line for line in reply.iter_lines() if line]
    assert [one["text"] for one in found] == expected
    assert events[-1] == "data: [DONE]"


def test_an_encoder_makes_vectors_and_has_no_other_routes(tmp_path: Path, serve: Callable[..., Any]) -> None:
    with serve(serving.encoder(tmp_path / "m")) as running, running.client() as client:
        found = asked(running, "/v1/embeddings", input=ROWS)
        assert [len(one["embedding"]) for one in found] == [16, 16, 16]
        assert client.post("/v1/chat/completions", json={}).status_code == 404
        assert "/v1/completions" not in client.get("/openapi.json").json()["paths"]


def test_a_task_with_several_fields_takes_a_mapping(tmp_path: Path, serve: Callable[..., Any]) -> None:
    own = task("translation", "task.fields=[source,tone,target]", "task.template='{tone} {source}:'")
    with serve(serving.chatter(tmp_path / "m", template=None), task=own) as running:
        assert asked(running, "/v1/translate", input=[{"source": "open", "tone": "formal"}])
        with running.client() as client:
            reply = client.post("/v1/translate", json={"input": "open"})
    assert reply.status_code == 422
    assert "a mapping with" in reply.json()["error"]["message"]


def test_a_task_of_another_head_is_refused(tmp_path: Path, serve: Callable[..., Any]) -> None:
    with (
        pytest.raises(RecipeError, match="needs a causal head"),
        serve(serving.classifier(tmp_path / "m"), task=task("translation")),
    ):
        pass
