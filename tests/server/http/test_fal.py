"""fal's dialect at the edge: runs, the queue with its three states, the proxy, and how failures look."""

import asyncio
import base64
import io
import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from server.generation import Priority
from server.http.access import FAL_STATUS, POLLED
from server.http.fal_app import Input, to_request
from server.http.fal_queue import fal_payload
from server.http.leniency import Leniency
from server.http.outputs import Outputs
from server.http.sizes import nearest_size
from server.job import Job, JobError, JobKey, JobState
from server.job_store import Delivery
from server.picture_files import PictureFiles
from tests.server.decoder.pictures import file_of, gradient
from tests.server.http.fake_engine import PREVIEW, FakeEngine, serving, wait_until
from tests.server.http.fal_requests import APP, RUN, SMALL, SUBMIT, finished


def picture(address: str) -> Image.Image:
    """The picture of a `data:` address."""
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_a_run_gives_the_output_itself(client: httpx.Client, engine: FakeEngine) -> None:
    answer = client.post(
        RUN, json=SMALL | {"num_images": 2, "num_inference_steps": 28, "guidance_scale": 3.5}
    )
    output = answer.json()
    assert (answer.status_code, output["seed"], output["prompt"]) == (200, 5, "a cat")
    assert output["has_nsfw_concepts"] == [False, False]
    assert output["timings"] == {"inference": pytest.approx(0.014)}
    for image in output["images"]:
        assert (image["width"], image["height"], image["content_type"]) == (256, 272, "image/jpeg")
        assert image["url"].startswith("data:image/jpeg;base64,")
        assert (picture(image["url"]).size, picture(image["url"]).format) == ((256, 272), "JPEG")
    assert answer.headers["x-fal-request-id"] == answer.headers["x-request-id"]
    asked = engine.last()
    assert (asked.steps, asked.guidance_scale, asked.num_images) == (12, 0.0, 2)


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        (None, (1024, 768)),
        ("square_hd", (1024, 1024)),
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_4_3", (1024, 768)),
        ("landscape_16_9", (1024, 576)),
        ({"width": 300}, (304, 512)),
        ({"width": 3072, "height": 1000}, (1536, 496)),
        ({"width": 1, "height": 14142}, (256, 1536)),
    ],
    ids=str,
)
def test_sizes_are_names_or_any_sides(
    client: httpx.Client, engine: FakeEngine, asked: object, made: tuple[int, int]
) -> None:
    sent = {"prompt": "a cat"} | ({} if asked is None else {"image_size": asked})
    (image,) = client.post(RUN, json=sent).json()["images"]
    assert (image["width"], image["height"]) == made == (engine.last().width, engine.last().height)


def test_what_can_be_made_is_made_as_it_is() -> None:
    for side in range(256, 1537, 16):
        assert nearest_size(side, 1536 + 256 - side) == (side, 1536 + 256 - side)


@pytest.mark.parametrize("app", ["fal-ai/flux-1/schnell", "fal-ai/flux/dev", "fal-ai/fast-sdxl"])
def test_any_app_is_served_unless_names_are_checked(client: httpx.Client, app: str) -> None:
    assert client.post(f"/fal/run/{app}", json=SMALL).status_code == 200
    assert client.post(f"/fal/run/{app}/stream", json=SMALL).status_code == 200
    assert client.post(f"/fal/queue/{app}", json=SMALL).status_code == 200
    with serving(FakeEngine(), strict_models=True) as url:
        refused = httpx.post(f"{url}/fal/run/{app}", json=SMALL)
        assert refused.status_code == (200 if app == "fal-ai/flux-1/schnell" else 404)
        assert httpx.post(f"{url}{RUN}", json=SMALL).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "location", "kind"),
    [
        ({"prompt": None}, ["body", "prompt"], "value_error"),
        ({"image_size": "huge"}, ["body", "image_size"], "value_error"),
        ({"image_size": {"width": 0}}, ["body", "image_size", "width"], "value_error"),
        ({"num_images": 5}, ["body", "num_images"], "value_error"),
        ({"output_format": "gif"}, ["body", "output_format"], "value_error"),
        ({"num_inference_steps": "four"}, ["body", "num_inference_steps"], "value_error"),
        ({"seed": -1}, ["body", "seed"], "value_error"),
    ],
    ids=str,
)
def test_bad_input_is_named(
    client: httpx.Client, wrong: dict[str, Any], location: list[str], kind: str
) -> None:
    for path in (RUN, SUBMIT):
        answer = client.post(path, json=SMALL | wrong)
        (detail,) = answer.json()["detail"]
        assert (answer.status_code, detail["loc"], detail["type"]) == (422, location, kind)
        assert "; allowed: " in detail["msg"]
        assert "another value" not in detail["msg"]


def test_what_is_missing_or_no_json_is_said(client: httpx.Client) -> None:
    (detail,) = client.post(RUN, json={}).json()["detail"]
    assert (detail["loc"], detail["type"]) == (["body", "prompt"], "missing")
    answer = client.post(RUN, content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body"])
    (detail,) = client.post(f"{SUBMIT}?fal_webhook=ftp://a", json=SMALL).json()["detail"]
    assert detail["loc"] == ["query", "fal_webhook"]


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("overloaded", 429, "overloaded"),
        ("not_ready", 503, "runner_scheduling_failure"),
        ("worker_lost", 503, "runner_disconnected"),
        ("generation_failed", 500, "runner_server_error"),
        ("out_of_memory", 500, "runner_server_error"),
    ],
)
def test_a_run_that_fails_says_what_kind_of_failure_it_was(
    client: httpx.Client, name: str, status: int, kind: str
) -> None:
    answer = client.post(RUN, json={"prompt": name})
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (status, kind)
    assert answer.json()["error_type"] == kind
    assert "x-fal-request-timeout-type" not in answer.headers


@pytest.mark.parametrize(
    "header",
    [{"X-Fal-Request-Timeout": "soon"}, {"X-Fal-Request-Timeout": "0"}, {"X-Fal-Queue-Priority": "high"}],
)
def test_headers_that_make_no_sense_are_refused(client: httpx.Client, header: dict[str, str]) -> None:
    for path in (RUN, SUBMIT):
        answer = client.post(path, json=SMALL, headers=header)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
        assert next(iter(header)).lower() in answer.json()["detail"]


def test_priority_is_the_one_of_the_header(client: httpx.Client, engine: FakeEngine) -> None:
    client.post(RUN, json=SMALL, headers={"X-Fal-Queue-Priority": "low"})
    assert engine.last().priority is Priority.LOW


def streamed(client: httpx.Client, **sent: Any) -> list[dict[str, Any]]:
    """The events of a stream, which have no names."""
    answer = client.post(f"{RUN}/stream", json=SMALL | sent)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (
        200,
        "text/event-stream",
    )
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.strip().split("\n\n")]


@pytest.mark.parametrize("output", ["data", "url"])
def test_a_stream_shows_previews_and_at_last_the_output(output: str) -> None:
    with serving(FakeEngine(), output=output) as url, httpx.Client(base_url=url, timeout=20) as client:
        *shown, last = streamed(client, num_images=2)
        assert [len(event["images"]) for event in shown] == [1, 1, 1, 2, 2, 2]
        for event in shown:
            assert (event["seed"], event["has_nsfw_concepts"]) == (5, [False] * len(event["images"]))
            newest = event["images"][-1]
            assert (newest["width"], newest["height"], newest["content_type"]) == (128, 136, "image/jpeg")
            assert base64.b64decode(newest["url"].partition(",")[2]) == PREVIEW
        ran = client.post(RUN, json=SMALL | {"num_images": 2}).json()
        assert len(last["images"]) == 2
        begin = f"{url}/files/" if output == "url" else "data:image/jpeg;base64,"
        assert all(each["url"].startswith(begin) for each in last["images"])
        assert (last == ran) == (output == "data")
        assert streamed(client, num_inference_steps=1)[-1]["seed"] == 5


def test_a_stream_that_fails_keeps_its_status_or_ends_with_the_failure(client: httpx.Client) -> None:
    refused = client.post(f"{RUN}/stream", json=SMALL | {"prompt": "overloaded"})
    assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
    (failed,) = streamed(client, prompt="then generation_failed")
    assert failed == {"detail": "the picture holds NaN", "error_type": "runner_server_error"}


def test_a_queued_request_is_known_by_both_forms_of_its_address(client: httpx.Client) -> None:
    submitted = client.post(SUBMIT, json=SMALL).json()
    assert (submitted["status"], submitted["queue_position"]) == ("IN_QUEUE", 0)
    assert str(uuid.UUID(submitted["request_id"])) == submitted["request_id"]
    assert submitted["response_url"].endswith(f"/fal/queue/fal-ai/flux/requests/{submitted['request_id']}")
    status = finished(client, submitted)
    assert [each["message"] for each in status["logs"]] == ["Using seed: 5"]
    assert "error" not in status
    result = client.get(submitted["response_url"])
    assert result.headers["x-fal-request-id"] == submitted["request_id"]
    assert result.json()["images"] == client.post(RUN, json=SMALL).json()["images"]
    longer = f"{SUBMIT}/requests/{submitted['request_id']}"
    assert client.get(longer).json() == result.json()
    assert client.get(f"{longer}/status").json()["logs"] is None


def test_a_request_in_the_queue_is_accepted_and_not_finished(client: httpx.Client) -> None:
    submitted = client.post(SUBMIT, json=SMALL | {"prompt": "wait"}).json()
    later = client.post(SUBMIT, json=SMALL | {"prompt": "wait"}).json()
    assert later["queue_position"] == 1
    answer = client.get(later["status_url"])
    assert (answer.status_code, answer.json()["queue_position"], answer.json()["logs"]) == (202, 1, None)
    early = client.get(later["response_url"])
    assert (early.status_code, early.json()) == (400, {"detail": "Request is still in progress"})
    for each in (submitted, later):
        ended = client.put(each["cancel_url"])
        assert (ended.status_code, ended.json()) == (200, {"status": "OK"})
        assert finished(client, each)["error_type"] == "client_cancelled"
    result = client.get(later["response_url"])
    assert (result.status_code, result.headers["x-fal-error-type"]) == (499, "client_cancelled")
    again = client.put(later["cancel_url"])
    assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})


def test_a_request_that_failed_is_completed_and_its_result_is_no_reason_to_ask_again(
    client: httpx.Client,
) -> None:
    for prompt in ("worker_lost", "generation_failed"):
        submitted = client.post(SUBMIT, json=SMALL | {"prompt": prompt}).json()
        assert finished(client, submitted)["error_type"] == "runner_server_error"
        result = client.get(submitted["response_url"])
        assert (result.status_code, result.headers["x-should-retry"]) == (500, "false")
        assert "retry-after" not in result.headers


def test_states_are_streamed_to_the_end_and_log_lines_once(client: httpx.Client) -> None:
    submitted = client.post(SUBMIT, json=SMALL | {"prompt": "wait"}).json()
    with client.stream("GET", f"{submitted['status_url']}/stream?logs=1") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line)
        first = json.loads(next(lines).removeprefix("data: "))
        client.put(submitted["cancel_url"])
        states = [first, *(json.loads(line.removeprefix("data: ")) for line in lines)]
    assert [state["status"] for state in states] == ["IN_QUEUE", "COMPLETED"]


def test_unknown_requests_are_not_found(client: httpx.Client) -> None:
    address = f"/fal/queue/fal-ai/flux/requests/{uuid.uuid4()}"
    for ask in (
        lambda: client.get(address),
        lambda: client.get(f"{address}/status"),
        lambda: client.get(f"{address}/status/stream"),
        lambda: client.put(f"{address}/cancel"),
    ):
        assert ask().status_code == 404


def test_the_queue_refuses_when_it_is_full() -> None:
    with serving(FakeEngine(), max_unfinished_jobs=1) as url:
        assert httpx.post(f"{url}{SUBMIT}", json=SMALL | {"prompt": "wait"}).status_code == 200
        refused = httpx.post(f"{url}{SUBMIT}", json=SMALL)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1


def test_pictures_are_given_by_url_where_the_server_is_set_so() -> None:
    engine = FakeEngine()
    with serving(engine, output="url") as url, httpx.Client(base_url=url, timeout=20) as client:
        output = client.post(RUN, json=SMALL | {"output_format": "png"}).json()
        (image,) = output["images"]
        assert image["url"].startswith(f"{url}/files/")
        assert Image.open(io.BytesIO(client.get(image["url"]).content)).format == "PNG"
        (image,) = client.post(RUN, json=SMALL | {"sync_mode": True}).json()["images"]
        assert image["url"].startswith("data:image/jpeg")
        submitted = client.post(SUBMIT, json=SMALL | {"sync_mode": True}).json()
        finished(client, submitted)
        (image,) = client.get(submitted["response_url"]).json()["images"]
        assert image["url"].startswith("data:image/jpeg")
        failed = client.post(RUN, json={"prompt": "generation_failed"})
        assert (failed.status_code, failed.json()["error_type"]) == (500, "runner_server_error")
        with pytest.raises(httpx.ReadTimeout):
            client.post(RUN, json={"prompt": "wait"}, timeout=0.3)
        wait_until(lambda: bool(engine.cancelled))


def test_the_route_that_is_asked_ten_times_a_second_is_not_logged_each_time(client: httpx.Client) -> None:
    assert FAL_STATUS in client.get("/openapi.json").json()["paths"]
    assert FAL_STATUS in POLLED


@pytest.mark.parametrize(
    ("ended", "status", "kind"),
    [
        ({"state": JobState.FAILED, "error": JobError(code="x", message="bad")}, 500, "runner_server_error"),
        ({"state": JobState.CANCELED, "completed_s": 9.0}, 499, "client_cancelled"),
        ({"state": JobState.CANCELED, "completed_s": 11.0}, 504, "request_timeout"),
    ],
    ids=str,
)
def test_a_webhook_tells_how_a_request_failed(
    tmp_path: Path, ended: dict[str, Any], status: int, kind: str
) -> None:
    sent = Input(prompt="a cat")
    job = Job(
        key=JobKey("fal", "", "7"),
        request=to_request(sent, None, Leniency(), id="7", priority=Priority.NORMAL),
        seeded=False,
        input={"app": APP, "sync_mode": False, "start_by_s": 10.0},
        **ended,
    )
    payload = fal_payload(Outputs(PictureFiles(tmp_path, lifetime_s=60)))
    delivery = Delivery(id="msg_1", event="completed", job=job, attempts=0, due_s=0)
    told = json.loads(asyncio.run(payload(delivery)))  # type: ignore[arg-type]
    assert (told["request_id"], told["gateway_request_id"], told["status"]) == ("7", "7", "ERROR")
    assert told["error"] == f"Invalid status code: {status}"
    assert told["payload"]["error_type"] == kind


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(file_of(image)).decode()}"


@pytest.mark.parametrize("app", ["fal-ai/flux/dev/image-to-image", "fal-ai/flux-general/inpainting", APP])
def test_a_picture_is_where_an_app_starts(client: httpx.Client, engine: FakeEngine, app: str) -> None:
    sent = {"prompt": "a", "image_url": data_url(gradient()), "strength": 0.4}
    output = client.post(f"/fal/run/{app}", json=sent).json()
    assert (output["images"][0]["width"], output["images"][0]["height"]) == gradient().size
    asked = engine.last()
    assert asked.source is not None
    assert (asked.source.pixels, asked.source.strength) == (gradient().tobytes(), 0.4)
    submitted = client.post(f"/fal/queue/{app}", json=sent | {"strength": None}).json()
    assert finished(client, submitted)["status"] == "COMPLETED"
    assert engine.last().source.strength == 0.6  # type: ignore[union-attr]


def test_masks_and_sizes_count_with_a_picture_and_without_one_a_strength_does_not(
    client: httpx.Client, engine: FakeEngine
) -> None:
    mask = Image.new("L", (512, 256))
    mask.paste(255, (0, 0, 200, 256))
    sent = {"prompt": "a", "image_url": data_url(gradient(512, 256)), "mask_url": data_url(mask)}
    client.post(RUN, json=sent | {"image_size": {"width": 256, "height": 256}})
    found = engine.last().source
    assert found is not None
    middle = mask.crop((128, 0, 384, 256))
    assert (found.mask, found.blend, found.strength) == (middle.tobytes(), middle.tobytes(), 1.0)
    client.post(RUN, json={"prompt": "a", "strength": 0.95})
    assert (engine.last().source, engine.last().width) == (None, 1024)


def test_a_picture_that_is_none_is_refused_in_both_ways(client: httpx.Client) -> None:
    for path in (RUN, SUBMIT):
        answer = client.post(path, json={"prompt": "a", "image_url": "data:image/png;base64,AAAA"})
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "image_url"])
