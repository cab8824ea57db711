"""In every dialect's words a request asks for adapters by name, and what is no name here is told clearly."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.generation import Adapter, AdapterInfo
from tests.server.http.fake_engine import FakeEngine, serving, wait_until

A, B = (Adapter(name=name, scale=1.0, digest=f"digest of {name}") for name in ("a", "b-1.0"))
NATIVE, OPENAI, COG = "/v1/generate", "/v1/images/generations", "/predictions"
REPLICATE, FAL, FAL_QUEUE = "/v1/predictions", "/fal/run/fal-ai/flux-lora", "/fal/queue/fal-ai/flux-lora"
WEB = "/sdapi/v1/txt2img"


def scaled(adapter: Adapter, scale: float) -> Adapter:
    return Adapter(name=adapter.name, scale=scale, digest=adapter.digest)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeEngine, httpx.Client]]:
    engine = FakeEngine()
    infos = [AdapterInfo(name=each.name, digest=each.digest, size_bytes=1) for each in (A, B)]
    engine.adapters.served = tuple(infos)
    with serving(engine, strict_models=True) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield engine, client


@pytest.mark.parametrize(
    ("path", "body", "adapters"),
    [
        (NATIVE, {"loras": [{"name": "a"}, {"name": "b-1.0", "scale": -0.5}]}, (A, scaled(B, -0.5))),
        (NATIVE, {"loras": [{"name": "a", "scale": 0}]}, ()),
        (NATIVE, {"loras": []}, ()),
        (NATIVE, {"loras": None}, ()),
        (OPENAI, {"model": "a"}, (A,)),
        (OPENAI, {"model": "a", "loras": [{"name": "b-1.0", "scale": 2}]}, (A, scaled(B, 2))),
        (OPENAI, {"model": "flux-schnell"}, ()),
        (COG, {"input": {"lora_weights": "a", "lora_scale": 0.25}}, (scaled(A, 0.25),)),
        (
            REPLICATE,
            {"input": {"lora_weights": "a", "extra_lora": "b-1.0", "extra_lora_scale": 0.75}},
            (A, scaled(B, 0.75)),
        ),
        (FAL, {"loras": [{"path": "a"}, {"path": "b-1.0", "scale": 0.5}]}, (A, scaled(B, 0.5))),
        (FAL_QUEUE, {"loras": [{"path": "a"}]}, (A,)),
        (FAL, {"loras": None}, ()),
        (WEB, {"prompt": "a cat <lora:a:0.8>"}, (scaled(A, 0.8),)),
        (WEB, {"prompt": "<lora:a> a cat<lora:b-1.0:1:0.5>"}, (A, scaled(B, 0.5))),
    ],
)
def test_every_dialect_asks_in_its_own_words(
    served: tuple[FakeEngine, httpx.Client], path: str, body: dict[str, Any], adapters: tuple[Adapter, ...]
) -> None:
    engine, client = served
    engine.requests.clear()
    if path in (COG, REPLICATE):
        body = {"input": {"prompt": "a cat", **body["input"]}}
    assert client.post(path, json={"prompt": "a cat", **body}).is_success
    wait_until(lambda: len(engine.requests) == 1)
    assert (engine.last().adapters, engine.last().prompt) == (adapters, "a cat")


@pytest.mark.parametrize(
    ("path", "body", "field", "said"),
    [
        (
            NATIVE,
            {"loras": [{"name": "c"}]},
            "loras.0.name",
            "is 'c', which is no adapter of this server; there are: a, b-1.0",
        ),
        (NATIVE, {"loras": [{"name": "a"}, {}]}, "loras.1.name", "is missing; it is the name of an adapter"),
        (
            NATIVE,
            {"loras": [{"name": "a", "scale": 4.5}]},
            "loras.0.scale",
            "is 4.5; allowed: a number from -4 to 4",
        ),
        (NATIVE, {"loras": [{"name": "a", "path": "x"}]}, "loras.0.path", "is not a field"),
        (NATIVE, {"loras": [{"name": "a"}] * 2}, "loras.1.name", 'is "a" for a second time'),
        (
            NATIVE,
            {"loras": [{"name": "a"}] * 5},
            "loras",
            "is a list of 5 entries; allowed: a list of at most 4",
        ),
        (NATIVE, {"loras": ["a"]}, "loras.0", "a list of at most 4"),
        (NATIVE, {"loras": {"name": "a"}}, "loras", "a list of at most 4"),
        (
            NATIVE,
            {"loras": [{"name": "https://a.example/x.safetensors"}]},
            "loras.0.name",
            "are not fetched from addresses",
        ),
        (OPENAI, {"model": "a", "loras": [{"name": "a"}]}, "loras.0.name", "for a second time"),
        (
            COG,
            {"input": {"lora_weights": "huggingface.co/owner/name"}},
            "input.lora_weights",
            "are not fetched",
        ),
        (REPLICATE, {"input": {"extra_lora": "c"}}, "input.extra_lora", "no adapter of this server"),
        (FAL, {"loras": [{"path": "c"}]}, "loras.0.path", "no adapter of this server"),
        (FAL, {"loras": [{"path": "https://v3.fal.media/files/x"}]}, "loras.0.path", "are not fetched"),
        (FAL, {"loras": [{"path": "a", "scale": "much"}]}, "loras.0.scale", "a number from -4 to 4"),
        (WEB, {"prompt": "<lora:c:1>"}, "prompt", "no adapter of this server"),
        (WEB, {"prompt": "<lora:a:much>"}, "prompt", "'much' as the weight of an adapter"),
        (WEB, {"prompt": "<lora:a:nan>"}, "prompt", "has scale nan; allowed: a number from -4 to 4"),
    ],
)
def test_what_is_wrong_is_named(
    served: tuple[FakeEngine, httpx.Client], path: str, body: dict[str, Any], field: str, said: str
) -> None:
    _, client = served
    if path in (COG, REPLICATE):
        body = {"input": {"prompt": "a cat", **body["input"]}}
    answer = client.post(path, json={"prompt": "a cat", **body})
    assert answer.status_code == (400 if path == OPENAI else 422)
    text = answer.text.replace('\\"', '"')
    assert field.rpartition(".")[2] in text
    if path == NATIVE:
        assert answer.json()["error"]["param"] == field
    assert said in text


def test_an_address_has_adapters_and_a_tag_of_their_files(served: tuple[FakeEngine, httpx.Client]) -> None:
    engine, client = served
    query = {"prompt": "a cat", "seed": 1}
    tags = {}
    for loras in (None, "a", "a:0.5", "a,b-1.0:0.5", "a:0"):
        answer = client.get(NATIVE, params=query if loras is None else query | {"loras": loras})
        assert answer.status_code == 200
        tags[loras] = answer.headers["ETag"]
    assert engine.last().adapters == ()
    assert tags.pop("a:0") == tags[None]
    assert len(set(tags.values())) == len(tags)
    before = engine.adapters.served
    other = AdapterInfo(name="a", digest="another", size_bytes=1)
    engine.adapters.served = (other, before[1])
    try:
        again = client.get(NATIVE, params=query | {"loras": "a"}, headers={"If-None-Match": tags["a"]})
    finally:
        engine.adapters.served = before
    assert (again.status_code, again.headers["ETag"] == tags["a"]) == (200, False)
    wrong = client.get(NATIVE, params=query | {"loras": "a:much"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "loras")


@pytest.mark.parametrize("text", ['[{"name": "a", "scale": 0.5}]', "a:0.5"])
def test_a_form_asks_for_adapters_in_json_or_as_an_address_does(
    served: tuple[FakeEngine, httpx.Client], text: str
) -> None:
    engine, client = served
    fields = {"prompt": (None, "a cat"), "loras": (None, text)}
    assert client.post(NATIVE, files=fields).status_code == 200
    assert engine.last().adapters == (scaled(A, 0.5),)


def test_adapters_are_listed_as_models_and_as_loras(served: tuple[FakeEngine, httpx.Client]) -> None:
    _, client = served
    models = {model["id"]: model.get("parent") for model in client.get("/v1/models").json()["data"]}
    assert models["a"] == models["b-1.0"] == "flux-schnell"
    assert models["flux-schnell"] is None
    assert client.get("/v1/models/a").json()["parent"] == "flux-schnell"
    unknown = client.get("/v1/models/c")
    assert unknown.status_code == 404
    assert "a, b-1.0" in unknown.json()["error"]["message"]
    assert [lora["name"] for lora in client.get("/sdapi/v1/loras").json()] == ["a", "b-1.0"]


def test_a_job_that_comes_before_the_model_is_looked_at_when_it_runs() -> None:
    engine = FakeEngine(model_info=None, ready=False)
    with serving(engine) as url, httpx.Client(base_url=url, timeout=20) as client:
        body = {"prompt": "a cat", "loras": [{"path": "not-known-yet", "scale": 0.5}]}
        assert client.post(FAL_QUEUE, json=body).status_code == 200
        wait_until(lambda: engine.waiting_for_model == 1)
