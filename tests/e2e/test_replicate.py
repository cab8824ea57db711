"""Replicate's official Python client 1.x, unchanged, against the real server, and a real receiver."""

import io
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import replicate
import standardwebhooks
from PIL import Image
from replicate.exceptions import ReplicateError
from replicate.webhook import Webhooks as ClientWebhooks

from tests.e2e.conftest import CALLABLE, Server, run_node, run_with, running_server
from tests.e2e.receiver import receiving
from tests.server.decoder.pictures import file_of, gradient

MODEL = "black-forest-labs/flux-schnell"
SMALL = {"prompt": "a red circle", "megapixels": "0.25", "num_inference_steps": 1}
LONG = {"prompt": "a tree", "num_inference_steps": 12, "num_outputs": 4}


@contextmanager
def client_of(server: Server) -> Iterator[replicate.Client]:
    """The client has no end of its own; its connections do."""
    made = replicate.Client(api_token="r8_unused", base_url=server.url)
    try:
        yield made
    finally:
        made._client.close()


@pytest.fixture
def client(server: Server) -> Iterator[replicate.Client]:
    with client_of(server) as made:
        yield made


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_run_gives_files(client: replicate.Client) -> None:
    outputs = client.run(MODEL, input=SMALL | {"num_outputs": 2, "seed": 5, "aspect_ratio": "16:9"})
    assert [picture(output.read()).size for output in outputs] == [(672, 384)] * 2
    assert picture(outputs[0].read()).format == "WEBP"
    assert len({output.read() for output in outputs}) == 2


def test_a_file_is_uploaded_and_started_from(client: replicate.Client) -> None:
    sent = {"image": io.BytesIO(file_of(gradient(320, 256))), "prompt_strength": 0.5}
    (output,) = client.run(MODEL, input=SMALL | sent | {"output_format": "png"})
    assert picture(output.read()).size == (320, 256)
    file = client.files.create(io.BytesIO(file_of(gradient())))
    assert client.files.get(file.id).checksums == file.checksums
    assert client.files.delete(file.id)
    with pytest.raises(ReplicateError):
        client.files.get(file.id)


def test_stream_gives_the_log_and_files(client: replicate.Client) -> None:
    logs, output, done = client.stream(MODEL, input=SMALL | {"seed": 5})
    assert (logs.event.value, str(done.event.value)) == ("logs", "done")
    assert picture(output.data.read()).format == "WEBP"  # type: ignore[attr-defined]
    with pytest.raises(ReplicateError, match="num_outputs"):
        list(client.stream(MODEL, input=SMALL | {"num_outputs": 9}))


@pytest.mark.parametrize(
    "ref", [f"{MODEL}:c846a69991daf4c0e5d016514849d14ee5b2e6846ce6b9d6f21369e564cfe51e", "someone/a-model"]
)
def test_run_takes_a_version_and_any_name(client: replicate.Client, ref: str) -> None:
    (output,) = client.run(ref, input=SMALL | {"output_format": "jpg", "output_quality": 30})
    assert picture(output.read()).format == "JPEG"


def test_polling_sees_states_that_only_move_forward(client: replicate.Client) -> None:
    made = client.predictions.create(version=MODEL, input=SMALL | {"seed": 7, "go_fast": False, "unknown": 1})
    assert re.fullmatch(r"[a-z2-7]{26}", made.id)
    assert (made.status, made.model, made.version) == ("starting", MODEL, "hidden")
    assert made.input == SMALL | {"seed": 7, "go_fast": False}
    seen = [made.status]
    while seen[-1] in ("starting", "processing"):
        made.reload()
        seen.append(made.status)
    order = ["starting", "processing", "succeeded"]
    assert [order.index(state) for state in seen] == sorted(order.index(state) for state in seen)
    assert made.logs == "Using seed: 7\n"
    assert made.metrics is not None
    assert 0 < made.metrics["predict_time"] <= made.metrics["total_time"]
    assert made.created_at is not None
    assert made.created_at.endswith("Z")
    assert made.output[0].startswith("data:image/webp;base64,")


def test_a_wait_that_runs_out_says_starting_and_leaves_the_job_running(
    server: Server, client: replicate.Client
) -> None:
    began = time.monotonic()
    answer = httpx.post(
        f"{server.url}/v1/models/{MODEL}/predictions",
        json={"input": LONG},
        headers={"Prefer": "wait=1"},
        timeout=1.5,
    )
    assert time.monotonic() - began < 1.5
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")
    found = client.predictions.get(answer.json()["id"])
    assert found.status in ("starting", "processing")
    found.cancel()
    assert found.status == "canceled"
    found.reload()
    assert (found.status, found.output) == ("canceled", None)
    assert found.completed_at is not None


def test_a_prediction_that_is_finished_stays_so(client: replicate.Client) -> None:
    made = client.models.predictions.create(MODEL, input=SMALL, wait=30)
    assert made.status == "succeeded"
    made.cancel()
    assert made.status == "succeeded"


def test_a_list_is_paged_from_the_newest(server: Server, client: replicate.Client) -> None:
    made = [client.predictions.create(version=MODEL, input=SMALL).id for _ in range(3)]
    page = client.predictions.list()
    assert [each.id for each in page][:3] == made[::-1]
    assert page.next is None
    for each in made:
        client.predictions.get(each).cancel()
    listed = httpx.get(f"{server.url}/v1/predictions", params={"created_after": "2999-01-01"}).json()
    assert listed == {"previous": None, "next": None, "results": []}


def test_cancel_after_ends_a_prediction(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/replicate/v1/predictions",
        json={"version": MODEL, "input": SMALL | {"megapixels": "0.25"}},
        headers={"Cancel-After": "1h30m45s"},
    )
    assert answer.status_code == 201
    assert answer.json()["deadline"].endswith("Z")
    assert answer.json()["urls"]["get"].startswith(f"{server.url}/replicate/v1/predictions/")
    for wrong in ("4", "soon", "-5s", ""):
        refused = httpx.post(
            f"{server.url}/v1/predictions", json={"input": SMALL}, headers={"Cancel-After": wrong}
        )
        assert refused.status_code == 400
        assert "cancel-after" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt": None}, "input.prompt"),
        ({"num_outputs": 5}, "input.num_outputs"),
        ({"aspect_ratio": "7:1"}, "input.aspect_ratio"),
        ({"megapixels": 1}, "input.megapixels"),
        ({"output_format": "gif"}, "input.output_format"),
        ({"seed": -1}, "input.seed"),
    ],
    ids=str,
)
def test_bad_input_is_named(client: replicate.Client, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ReplicateError) as caught:
        client.run(MODEL, input=SMALL | wrong)
    assert caught.value.status == 422
    assert caught.value.title == "Input validation failed"
    assert field in (caught.value.detail or "")


def test_unknown_predictions_are_not_found(client: replicate.Client) -> None:
    for ask in (client.predictions.get, client.predictions.cancel):
        with pytest.raises(ReplicateError) as caught:
            ask("a" * 26)
        assert caught.value.status == 404


def test_models_and_versions_are_described(client: replicate.Client) -> None:
    model = client.models.get(MODEL)
    assert (model.owner, model.name, model.visibility) == ("black-forest-labs", "flux-schnell", "public")
    assert model.latest_version is not None
    (version,) = model.versions.list()
    assert version.id == model.latest_version.id
    assert "prompt" in version.openapi_schema["components"]["schemas"]["Input"]["properties"]
    assert model.versions.get("c846").id == "c846"


def test_webhooks_are_signed_and_repeated_until_they_are_taken(client: replicate.Client) -> None:
    secret = client.webhooks.default.secret()
    with receiving(500) as receiver:
        made = client.predictions.create(
            version=MODEL,
            input=SMALL | {"seed": 3},
            webhook=receiver.url,
            webhook_events_filter=["start", "output", "logs", "completed"],
        )
        calls = receiver.wait(5)
    for headers, body in calls:
        standardwebhooks.Webhook(secret.key).verify(body, headers)
        ClientWebhooks.validate(headers=headers, body=body.decode(), secret=secret)
        assert json.loads(body)["id"] == made.id
    by_id: dict[str, list[dict[str, Any]]] = {}
    for headers, body in calls:
        by_id.setdefault(headers["webhook-id"], []).append(json.loads(body))
    assert sorted(len(bodies) for bodies in by_id.values()) == [1, 1, 1, 2]
    last = [bodies[-1] for bodies in by_id.values()]
    states = sorted((each["status"], bool(each["output"])) for each in last)
    assert states == [("processing", False), ("processing", False), ("processing", True), ("succeeded", True)]
    (done,) = (each for each in last if each["status"] == "succeeded")
    answer = httpx.get(done["output"][0])
    assert picture(answer.content).size == (512, 512)
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch(r"public, max-age=86\d{3}, immutable", answer.headers["cache-control"])


def test_webhooks_to_the_inside_are_refused(server: Server) -> None:
    for url in (
        "http://127.0.0.1:8000/hook",
        "http://localhost/hook",
        "http://[::1]/hook",
        "http://169.254.169.254/latest",
        "http://user:word@example.com/",
        "ftp://example.com/",
        "nonsense",
    ):
        answer = httpx.post(
            f"{server.url}/v1/models/{MODEL}/predictions", json={"input": SMALL, "webhook": url}
        )
        assert (answer.status_code, answer.json()["invalid_fields"][0]["field"]) == (422, "webhook")


def test_accepted_predictions_survive_a_front_end_that_is_killed(tmp_path: Path) -> None:
    with receiving(503) as receiver:
        arguments = ("--webhook-allow-networks", CALLABLE, "--output", "url")
        with running_server(tmp_path, *arguments, ready=False) as server, client_of(server) as client:
            early = client.predictions.create(version=MODEL, input=SMALL | {"seed": 11})
            assert early.status == "starting", "taken in while the model is being loaded"
            server.wait_ready()
            done = client.predictions.create(
                version=MODEL, input=SMALL, webhook=receiver.url, webhook_events_filter=["completed"]
            )
            done.wait()
            receiver.wait(1)
            late = [
                client.predictions.create(version=MODEL, input=SMALL | {"num_outputs": 2}) for _ in range(3)
            ]
            sent = io.BytesIO(file_of(gradient(256, 272)))
            edit = client.predictions.create(version=MODEL, input=SMALL | {"image": sent})
            children = psutil.Process(server.process.pid).children()
            server.process.kill()
            server.process.wait()
            _, alive = psutil.wait_procs(children, timeout=5)
            assert all(each.status() == psutil.STATUS_ZOMBIE for each in alive), "they die with it"
        with running_server(tmp_path, *arguments) as server, client_of(server) as client:
            for each in (early, done, *late, edit):
                found = client.predictions.get(each.id)
                found.wait()
                assert found.status == "succeeded"
                assert all(httpx.get(output).status_code == 200 for output in found.output)
            edited = picture(httpx.get(found.output[0]).content)
            assert edited.size == (256, 272), "the last one started from its picture"
            ids = {headers["webhook-id"] for headers, _ in receiver.wait(2)}
            assert len(ids) == 1


@pytest.mark.parametrize("script", ["replicate.mjs", "ai-sdk-replicate.mjs"])
def test_clients_for_node(server: Server, script: str) -> None:
    assert run_node(script, server.url) == "ok\n"


def test_the_newest_beta_of_the_python_client(server: Server) -> None:
    assert run_with("replicate2", "replicate2.py", server.url) == "ok\n"
