"""The Cog dialect: our answers beside those that the real server gave, and what is ours to decide."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.receiver import Receiver, receiving
from tests.server.decoder.pictures import file_of, gradient
from tests.server.http.cog_reference.exchanges import (
    ALONE,
    ANSWERS,
    LOADING,
    WAIT,
    Asked,
    ask,
    ask_while_it_runs,
)
from tests.server.http.fake_engine import FakeEngine, serving, wait_until

REFERENCE: dict[str, Any] = json.loads(ANSWERS.read_text())
HTML = "text/html,application/xhtml+xml,*/*;q=0.8"


def expected(name: str) -> dict[str, Any]:
    """What the real server answered, with what we do in another way on purpose."""
    answer = json.loads(json.dumps(REFERENCE[name]))
    match name:
        case "index":
            del answer["body"]["shutdown_url"]  # nobody but its operator ends this server
        case "health" | "loading: health":
            for key in ("started_at", "completed_at", "logs"):  # of workers, which come and go
                answer["body"]["setup"].pop(key, None)
        case "megapixels is a number":
            del answer["body"]["detail"][1:]  # one finding at a time
        case "poll":
            answer |= {"type": "application/json"}  # of every path alike
    return answer


@pytest.mark.parametrize("name", ALONE)
def test_answers_are_those_of_the_real_server(client: httpx.Client, name: str) -> None:
    answer = ask(client, ALONE[name])
    if name == "poll":
        answer["body"] = "<text>"
    assert answer == expected(name)


@pytest.mark.parametrize("name", LOADING)
def test_so_are_those_before_the_model_is_loaded(name: str) -> None:
    with serving(FakeEngine(model_info=None, ready=False)) as url, httpx.Client(base_url=url) as client:
        assert ask(client, LOADING[name]) == expected(name)


def test_so_are_those_while_a_prediction_runs(client: httpx.Client) -> None:
    answers = ask_while_it_runs(client)
    assert answers == {name: expected(name) for name in answers}


def test_every_exchange_was_recorded() -> None:
    recorded = {name for name in REFERENCE if not name.startswith("running: ")}
    assert recorded == set(ALONE) | set(LOADING)


@pytest.mark.parametrize(
    ("sent", "field", "value"),
    [
        ({}, "image_format", "webp"),
        ({}, "quality", 80),
        ({}, "steps", 4),
        ({"output_quality": 0}, "quality", 1),
        ({"output_format": "jpg"}, "image_format", "jpeg"),
        ({"num_outputs": 3}, "num_images", 3),
        ({"num_inference_steps": 1}, "steps", 1),
        ({"seed": 9}, "seed", 9),
        ({"aspect_ratio": "9:21"}, "height", 1536),
        ({"aspect_ratio": "9:21", "megapixels": "0.25"}, "width", 320),
        ({}, "width", 1024),
    ],
    ids=str,
)
def test_input_reaches_the_engine(
    client: httpx.Client, engine: FakeEngine, sent: dict[str, Any], field: str, value: object
) -> None:
    client.post("/predictions", json={"input": {"prompt": "a"} | sent})
    assert getattr(engine.last(), field) == value


def test_no_seed_and_seed_0_are_drawn(client: httpx.Client, engine: FakeEngine) -> None:
    for seed in (None, 0):
        client.post("/predictions", json={"input": {"prompt": "a", "seed": seed, "megapixels": "0.25"}})
        assert engine.last().seed > 0


def test_steps_beyond_the_model_are_refused_unless_they_are_clamped() -> None:
    engine = FakeEngine()
    sent = {"input": {"prompt": "a", "num_inference_steps": 28, "megapixels": "0.25"}}
    with serving(engine) as url:
        refused = httpx.post(f"{url}/predictions", json=sent)
        assert refused.status_code == 422
        (detail,) = refused.json()["detail"]
        assert detail["loc"] == ["body", "input", "num_inference_steps"]
        assert detail["msg"] == "input.num_inference_steps is 28; allowed: a whole number from 1 to 12"
    with serving(engine, clamp_steps="cog") as url:
        assert httpx.post(f"{url}/predictions", json=sent).status_code == 200
    assert engine.last().steps == 12


def test_nobody_sees_or_ends_the_prediction_of_another() -> None:
    engine = FakeEngine()
    cancel = Asked("POST", "/predictions/running/cancel")
    with (
        serving(engine) as url,
        httpx.Client(base_url=url, headers={"Authorization": "Bearer one"}) as one,
        httpx.Client(base_url=url, headers={"Authorization": "Bearer two"}) as two,
        ThreadPoolExecutor(1) as thread,
    ):
        running = thread.submit(ask, one, WAIT)
        wait_until(lambda: bool(engine.held))
        assert ask(two, cancel)["status"] == 404
        assert not running.done()
        assert ask(one, cancel)["status"] == 200
        assert running.result()["body"]["status"] == "canceled"


ASYNC = {"Prefer": "respond-async"}
SENT = {"prompt": "a", "seed": 3, "megapixels": "0.25", "output_format": "png"}


def told(receiver: Receiver) -> list[dict[str, Any]]:
    """The bodies of the webhooks so far."""
    return [json.loads(body) for _, body in receiver.calls]


@pytest.fixture
def open_inside() -> Iterator[tuple[httpx.Client, FakeEngine]]:
    engine = FakeEngine()
    allowed = {"webhook_allow_networks": "127.0.0.0/8"}
    with serving(engine, **allowed) as url, httpx.Client(base_url=url) as client:
        yield client, engine


def test_what_is_not_waited_for_is_told_to_its_webhook(
    open_inside: tuple[httpx.Client, FakeEngine],
) -> None:
    client, _ = open_inside
    with receiving() as receiver:
        body = {"input": SENT, "webhook": receiver.url}
        answer = client.put("/predictions/later", json=body, headers=ASYNC)
        assert (answer.status_code, answer.json()) == (202, {"id": "later", "status": "starting"})
        wait_until(lambda: bool(told(receiver)) and told(receiver)[-1]["status"] == "succeeded")
    assert {each["id"] for each in told(receiver)} == {"later"}
    first, *_, output, completed = told(receiver)
    assert first == {"id": "later", "logs": "", "metrics": {}, "status": "processing"}
    assert output["status"] == "processing"
    assert output["output"] == completed["output"]
    assert completed["logs"] == "Using seed: 3\n"
    assert completed["metrics"]["predict_time"] >= 0
    (picture,) = completed["output"]
    assert picture.startswith("data:image/png;base64,")


def test_what_is_waited_for_is_told_to_its_webhook_too(open_inside: tuple[httpx.Client, FakeEngine]) -> None:
    client, _ = open_inside
    with receiving() as receiver:
        answer = client.post("/predictions", json={"input": SENT, "webhook": receiver.url, "id": "now"})
        assert answer.status_code == 200
        wait_until(lambda: bool(told(receiver)) and told(receiver)[-1]["status"] == "succeeded")
        failing = {"input": {"prompt": "generation_failed"}, "webhook": receiver.url, "id": "bad"}
        failed = client.post("/predictions", json=failing)
        wait_until(lambda: told(receiver)[-1]["id"] == "bad" and told(receiver)[-1]["status"] == "failed")
    completed = next(each for each in told(receiver) if each["status"] == "succeeded")
    assert answer.json() == completed
    assert (failed.status_code, failed.json()) == (200, told(receiver)[-1])


def test_a_client_that_leaves_takes_what_its_webhook_would_hear_of_along(
    open_inside: tuple[httpx.Client, FakeEngine],
) -> None:
    client, engine = open_inside
    with receiving() as receiver:
        body = {
            "input": SENT | {"prompt": "wait"},
            "webhook": receiver.url,
            "webhook_events_filter": ["completed"],
        }
        with pytest.raises(httpx.ReadTimeout):
            client.post("/predictions", json=body, timeout=0.3)
        wait_until(lambda: bool(engine.cancelled) and bool(told(receiver)))
    assert told(receiver)[-1]["status"] == "canceled"


def test_an_id_is_of_one_prediction_while_that_is_kept(
    open_inside: tuple[httpx.Client, FakeEngine],
) -> None:
    client, engine = open_inside
    with receiving() as receiver:
        body = {"input": SENT, "webhook": receiver.url, "webhook_events_filter": ["completed"]}
        for status in ("starting", "succeeded"):
            again = client.put("/predictions/mine", json=body, headers=ASYNC)
            assert (again.status_code, again.json()) == (202, {"id": "mine", "status": status})
            wait_until(lambda: bool(told(receiver)))
        made = len(engine.requests)
        for other in (body | {"input": SENT | {"seed": 4}}, {"input": SENT}):
            refused = client.put("/predictions/mine", json=other, headers=ASYNC)
            assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["body", "id"])
        assert (len(engine.requests), len(told(receiver))) == (made, 1)


def test_only_the_events_that_were_asked_for_are_told(open_inside: tuple[httpx.Client, FakeEngine]) -> None:
    client, _ = open_inside
    with receiving() as receiver:
        body = {"input": SENT, "webhook": receiver.url, "webhook_events_filter": ["completed"]}
        failing = body | {"input": {"prompt": "generation_failed"}}
        assert client.post("/predictions", json=body, headers=ASYNC).status_code == 202
        assert client.post("/predictions", json=failing, headers=ASYNC).status_code == 202
        wait_until(lambda: len(told(receiver)) == 2)
    assert sorted(each["status"] for each in told(receiver)) == ["failed", "succeeded"]
    (failed,) = (each for each in told(receiver) if each["status"] == "failed")
    assert failed["error"] == "the picture holds NaN"


def test_what_runs_for_a_webhook_is_told_again_and_cancelled(
    open_inside: tuple[httpx.Client, FakeEngine],
) -> None:
    client, engine = open_inside
    body = {"input": SENT | {"prompt": "wait"}}
    assert client.put("/predictions/long", json=body, headers=ASYNC).status_code == 202
    for headers in ({}, ASYNC):
        again = client.put("/predictions/long", json=body, headers=headers)
        assert again.status_code == 202
        assert (again.json()["id"], again.json()["input"]) == ("long", body["input"])
    assert client.post("/predictions/long/cancel").status_code == 200
    wait_until(lambda: bool(engine.cancelled))
    assert client.post("/predictions/long/cancel").status_code == 404
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("sent", "headers", "field"),
    [
        ({"webhook": "ftp://example.org/"}, {}, "webhook"),
        ({"webhook": "ftp://example.org/"}, ASYNC, "webhook"),
        (
            {"webhook": "http://example.org/", "webhook_events_filter": ["end"]},
            ASYNC,
            "webhook_events_filter",
        ),
    ],
    ids=str,
)
def test_wrong_webhooks_are_refused(
    client: httpx.Client, sent: dict[str, Any], headers: dict[str, str], field: str
) -> None:
    answer = client.post("/predictions", json={"input": SENT} | sent, headers=headers)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", field])


def test_the_index_is_for_programs_and_people_get_the_page(client: httpx.Client) -> None:
    assert client.get("/").json()["predictions_url"] == "/predictions"
    assert client.get("/", headers={"Accept": HTML}).headers["content-type"].startswith("text/html")


def test_the_schema_of_input_and_output_is_where_readers_look_for_it(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    orders = [field["x-order"] for field in schemas["Input"]["properties"].values()]
    assert orders == sorted(orders)
    assert schemas["Input"]["required"] == ["prompt"]
    assert schemas["Output"]["items"] == {"type": "string", "format": "uri"}


def test_a_server_whose_worker_is_away_is_not_healthy() -> None:
    with serving(FakeEngine(ready=False)) as url:
        assert httpx.get(f"{url}/health-check").json()["status"] == "UNHEALTHY"


@pytest.mark.parametrize("name", ["a%00b", "x" * 129, "a%0Ab"])
def test_ids_are_short_and_harmless(client: httpx.Client, name: str) -> None:
    answer = client.put(f"/predictions/{name}", json={"input": {"prompt": "a"}})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "id"])


PICTURE = f"data:image/png;base64,{base64.b64encode(file_of(gradient())).decode()}"


def test_a_picture_is_where_a_prediction_starts(client: httpx.Client, engine: FakeEngine) -> None:
    sent = {"prompt": "a", "image": PICTURE, "prompt_strength": 0.4, "megapixels": "0.25"}
    answer = client.post("/predictions", json={"input": sent}).json()
    assert answer["status"] == "succeeded"
    asked = engine.last()
    assert asked.source is not None
    assert (asked.source.pixels, asked.source.strength) == (gradient().tobytes(), 0.4)
    refused = client.post("/predictions", json={"input": sent | {"mask": "data:;base64,AAAA"}}).json()
    assert refused["detail"][0]["loc"] == ["body", "input", "mask"]
    properties = client.get("/openapi.json").json()["components"]["schemas"]["Input"]["properties"]
    assert [properties[name]["x-order"] for name in ("image", "mask", "prompt_strength")] == [10, 11, 12]
    assert properties["image"]["format"] == "uri"


def test_the_id_of_a_prediction_with_one_picture_is_not_that_of_another(client: httpx.Client) -> None:
    headers = {"Prefer": "respond-async"}
    other = f"data:image/png;base64,{base64.b64encode(file_of(gradient(272))).decode()}"
    answers = [
        client.put(
            "/predictions/with-picture",
            json={"id": "with-picture", "input": {"prompt": "wait", "image": image}},
            headers=headers,
        )
        for image in (PICTURE, PICTURE)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    shown = answers[1].json()["input"]["image"]
    assert shown.startswith("data:image/png;base64,… (")
    client.post("/predictions/with-picture/cancel")
    refused = client.put(
        "/predictions/with-picture",
        json={"id": "with-picture", "input": {"prompt": "wait", "image": other}},
        headers=headers,
    )
    assert refused.status_code == 422
