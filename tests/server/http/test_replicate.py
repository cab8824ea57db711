"""Replicate's dialect at the edge: what real clients do not send, and what a real engine does not do."""

import base64
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import Edge
from server.http.auth import Door
from server.keys import KeysFile
from server.keys import create as create_key
from tests.server.decoder.pictures import file_of, gradient
from tests.server.http.fake_engine import MODEL as LOADED
from tests.server.http.fake_engine import FakeEngine, serving

MODEL = "black-forest-labs/flux-schnell"
CREATE = f"/v1/models/{MODEL}/predictions"


def create(client: httpx.Client, prompt: str = "a", path: str = CREATE, **changes: Any) -> httpx.Response:
    headers = changes.pop("headers", {"Prefer": "wait"})
    body = {"input": {"prompt": prompt, "megapixels": "0.25", **changes.pop("input", {})}, **changes}
    return client.post(path, json=body, headers=headers)


def test_fields_become_a_request(client: httpx.Client, engine: FakeEngine) -> None:
    sent = {"aspect_ratio": "9:21", "num_outputs": 3, "num_inference_steps": 50, "seed": 9}
    answer = create(client, input=sent | {"megapixels": "1", "output_format": "jpg", "output_quality": 0})
    assert answer.status_code == 201
    assert answer.json()["status"] == "succeeded"
    asked = engine.requests[-1]
    assert (asked.width, asked.height, asked.num_images, asked.seed) == (640, 1536, 3, 9)
    assert (asked.steps, asked.image_format, asked.quality) == (LOADED.max_steps, "jpeg", 1)
    assert asked.id == answer.json()["id"]
    create(client, input={"seed": 0})
    assert engine.last().seed > 0, "0 has one drawn"


@pytest.mark.parametrize("prefix", ["/v1", "/replicate/v1", "/v1/v1"])
def test_addresses_in_an_answer_keep_its_prefix(client: httpx.Client, prefix: str) -> None:
    made = create(client, path=f"{prefix}/predictions").json()
    assert httpx.URL(made["urls"]["get"]).path == f"{prefix}/predictions/{made['id']}"
    assert client.get(made["urls"]["get"]).json() == made
    assert None not in made["urls"].values()


@pytest.mark.parametrize(
    ("version", "model", "shown"),
    [
        (None, MODEL, "hidden"),
        ("c846", MODEL, "c846"),
        ("some/body", "some/body", "hidden"),
        ("some/body:c846", "some/body", "c846"),
    ],
)
def test_a_version_names_the_model(client: httpx.Client, version: str, model: str, shown: str) -> None:
    made = create(client, path="/v1/predictions", version=version).json()
    assert (made["model"], made["version"]) == (model, shown)


@pytest.mark.parametrize("prefer", ["respond-async, wait=1", "wait=1, x"])
def test_a_wait_that_runs_out_says_starting(client: httpx.Client, prefer: str) -> None:
    answer = create(client, "wait", headers={"Prefer": prefer})
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")
    assert answer.elapsed.total_seconds() < 1.1
    assert client.post(answer.json()["urls"]["cancel"]).json()["status"] == "canceled"


def test_other_names_are_refused_where_names_are_checked() -> None:
    with (
        serving(FakeEngine(), strict_models=True) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert create(client).status_code == 201
        refused = create(client, path="/v1/models/some/body/predictions")
        assert (refused.status_code, refused.json()["title"]) == (404, "Not found")
        assert client.get("/v1/models/some/body").status_code == 404


def test_pictures_are_given_by_url_where_clients_come_over_https() -> None:
    with (
        serving(FakeEngine(), public_url="https://pictures.example/flux/") as url,
        httpx.Client(base_url=url) as client,
    ):
        made = create(client, input={"num_outputs": 2, "output_format": "png"}).json()
        base = "https://pictures.example/flux"
        assert made["urls"]["get"] == f"{base}/v1/predictions/{made['id']}"
        assert all(output.startswith(f"{base}/files/") for output in made["output"])
        answer = client.get(made["output"][0].removeprefix(base))
        assert answer.content.startswith(b"\x89PNG")
        head = client.head(made["output"][0].removeprefix(base))
        assert head.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("name", ["..%2Fjobs.sqlite", "a.png", f"{'a' * 22}.png", f"{'a' * 22}.part"])
def test_there_are_no_other_files(client: httpx.Client, name: str) -> None:
    assert client.get(f"/files/{name}").status_code == 404


def test_openai_and_replicate_find_their_model_in_one_object(client: httpx.Client) -> None:
    found = client.get("/v1/models/black-forest-labs%2FFLUX.1-schnell").json()
    assert (found["id"], found["object"]) == ("black-forest-labs/FLUX.1-schnell", "model")
    assert (found["owner"], found["name"], found["run_count"]) == ("black-forest-labs", "FLUX.1-schnell", 0)
    assert client.get("/v1/models").json()["object"] == "list"


@pytest.mark.parametrize(
    ("query", "field"),
    [("cursor=x", "cursor"), ("cursor=0", "cursor"), ("created_after=then", "created_after")],
)
def test_a_list_that_makes_no_sense_is_refused(client: httpx.Client, query: str, field: str) -> None:
    answer = client.get(f"/v1/predictions?{query}")
    assert (answer.status_code, answer.json()["invalid_fields"][0]["field"]) == (422, field)


@pytest.fixture(scope="module")
def crowded() -> Iterator[httpx.Client]:
    with serving(FakeEngine()) as url, httpx.Client(base_url=url, timeout=20) as client:
        for _ in range(103):
            create(client, headers={})
        yield client


def test_pages_follow_each_other_to_the_oldest(crowded: httpx.Client) -> None:
    first = crowded.get("/replicate/v1/predictions", params={"created_after": "2020-01-01T00:00:00Z"}).json()
    assert first["next"].startswith(f"{str(crowded.base_url).rstrip('/')}/replicate/v1/predictions?")
    second = crowded.get(first["next"]).json()
    assert (len(first["results"]), len(second["results"]), second["next"]) == (100, 3, None)
    assert len({each["id"] for each in first["results"] + second["results"]}) == 103
    assert crowded.get("/v1/predictions?source=web").json()["results"] == []


def streamed(client: httpx.Client, address: str) -> list[tuple[str, str]]:
    """The names and the data of all events, which have ids that count."""
    answer = client.get(address, headers={"Accept": "text/event-stream"})
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (
        200,
        "text/event-stream",
    )
    events = []
    for number, text in enumerate(answer.text.strip().split("\n\n"), start=1):
        lines = [line.partition(": ") for line in text.splitlines()]
        assert [value for name, _, value in lines if name == "id"] == [str(number)]
        (event,) = (value for name, _, value in lines if name == "event")
        events.append((event, "\n".join(value for name, _, value in lines if name == "data")))
    return events


def test_a_prediction_can_be_listened_to(client: httpx.Client) -> None:
    made = create(client, input={"num_outputs": 2, "seed": 7}).json()
    logs, *outputs, done = streamed(client, made["urls"]["stream"])
    assert logs[0] == "logs"
    assert logs[1].startswith("Using seed: 7")
    assert outputs == [("output", each) for each in made["output"]]
    assert done == ("done", "{}")
    failed = create(client, "generation_failed").json()
    assert streamed(client, failed["urls"]["stream"]) == [
        ("error", '{"detail":"the picture holds NaN"}'),
        ("done", '{"reason":"error"}'),
    ]
    waiting = create(client, "wait", headers={}).json()
    with ThreadPoolExecutor(1) as thread:
        heard = thread.submit(streamed, client, waiting["urls"]["stream"])
        client.post(waiting["urls"]["cancel"])
        assert heard.result() == [("done", '{"reason":"canceled"}')]


def test_a_stream_by_url_needs_no_key_and_an_address_that_nobody_guesses(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    headers = {"Authorization": f"Bearer {create_key(file, 'me-1_2')}", "Prefer": "wait"}
    with (
        serving(FakeEngine(), Edge(door=Door(KeysFile.read(file))), output="url") as url,
        httpx.Client(base_url=url) as client,
    ):
        made = create(client, headers=headers, path="/replicate/v1/predictions").json()
        address = made["urls"]["stream"]
        assert ("output", made["output"][0]) in streamed(client, address)
        prediction_id, token, owner = address.rpartition("/")[2].split(".")
        assert (prediction_id, owner) == (made["id"], "me-1_2")
        for wrong in (
            prediction_id,
            f"{prediction_id}.{token}",
            f"{prediction_id}.{token}.you",
            f"{prediction_id}.{token[:-1]}.{owner}",
            f"other.{token}.{owner}",
            f"{prediction_id}.%C3%A9.{owner}",
        ):
            answer = client.get(f"/v1/files/stream/{wrong}")
            assert (answer.status_code, answer.json()["title"]) == (404, "Not found"), wrong


def test_keys_have_jobs_of_their_own_and_are_charged_for_them(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    mine = {"Authorization": f"Bearer {create_key(file, 'me', concurrent_requests=1)}"}
    other = {"Authorization": f"Token {create_key(file, 'you')}"}
    door = Door(KeysFile.read(file))
    engine = FakeEngine(device_s=1.5)
    with serving(engine, Edge(door=door)) as url, httpx.Client(base_url=url, timeout=20) as client:
        refused = create(client, headers={})
        assert (refused.status_code, refused.json()["title"]) == (401, "Unauthenticated")
        made = create(client, headers=mine | {"Prefer": "wait"}).json()
        assert engine.requests[-1].key == "me"
        assert door.quotas.today(time.time()).device_s == {"me": 1.5}
        assert client.get(made["urls"]["get"], headers=other).status_code == 404
        assert client.get("/v1/predictions", headers=other).json()["results"] == []
        signing = [client.get("/v1/webhooks/default/secret", headers=each).json() for each in (mine, other)]
        assert signing[0] != signing[1], "nobody signs calls to another's webhooks"
        running = create(client, "wait", headers=mine).json()
        assert create(client, headers=mine).status_code == 429, "one at once, until it has ended"
        assert client.post(running["urls"]["cancel"], headers=other).status_code == 404
        assert client.post(running["urls"]["cancel"], headers=mine).json()["status"] == "canceled"
        assert create(client, headers=mine).status_code == 201


def upload(client: httpx.Client, prefix: str = "/v1", **options: Any) -> httpx.Response:
    files = {"content": ("cat.png", file_of(gradient()), "image/png"), "metadata": ("blob", b"{}")}
    return client.post(f"{prefix}/files", files=files, **options)


@pytest.mark.parametrize("prefix", ["/v1", "/replicate/v1", "/v1/v1"])
def test_a_file_is_uploaded_and_named_as_input(client: httpx.Client, engine: FakeEngine, prefix: str) -> None:
    answer = upload(client, prefix)
    file = answer.json()
    assert answer.status_code == 201
    assert (file["content_type"], file["size"]) == ("image/png", len(file_of(gradient())))
    assert file["checksums"]["sha256"] == file["etag"] == hashlib.sha256(file_of(gradient())).hexdigest()
    assert file["urls"]["get"] == f"{str(client.base_url).rstrip('/')}{prefix}/files/{file['id']}"
    assert client.get(file["urls"]["get"]).json() == file
    made = create(client, input={"image": file["urls"]["get"]}).json()
    assert (made["status"], made["input"]["image"]) == ("succeeded", file["urls"]["get"])
    asked = engine.requests[-1]
    assert asked.source is not None
    assert (asked.source.pixels, asked.source.strength) == (gradient().tobytes(), 0.6)
    assert (asked.width, asked.height) == gradient().size
    assert client.delete(f"{prefix}/files/{file['id']}").status_code == 204
    for gone in (client.get(file["urls"]["get"]), client.delete(file["urls"]["get"])):
        assert gone.status_code == 404
    refused = create(client, input={"image": file["urls"]["get"]})
    assert (refused.status_code, refused.json()["invalid_fields"][0]["field"]) == (422, "input.image")


def test_what_comes_as_data_is_shown_shortly(client: httpx.Client, engine: FakeEngine) -> None:
    address = f"data:image/png;base64,{base64.b64encode(file_of(gradient())).decode()}"
    made = create(client, input={"image": address, "mask": address, "prompt_strength": 0.5}).json()
    asked = engine.requests[-1].source
    assert asked is not None
    assert asked.strength == 0.5
    assert asked.mask is not None
    assert made["input"]["image"].startswith("data:image/png;base64,… (")
    assert len(made["input"]["image"]) < 150
    create(client, input={"image": address, "mask": address})
    assert engine.requests[-1].source.strength == 1.0  # type: ignore[union-attr]


def test_a_picture_of_a_prediction_is_the_input_of_the_next(engine: FakeEngine) -> None:
    with serving(engine, output="url") as url, httpx.Client(base_url=url) as client:
        (made,) = create(client, input={"output_format": "png"}).json()["output"]
        assert made.startswith(f"{url}/files/")
        assert create(client, input={"image": made}).json()["status"] == "succeeded"
        assert engine.requests[-1].source is not None


def test_what_is_said_of_no_picture_is_passed_over(client: httpx.Client, engine: FakeEngine) -> None:
    assert create(client, input={"prompt_strength": 0.8, "image": None}).status_code == 201
    assert engine.requests[-1].source is None


@pytest.mark.parametrize(
    ("sent", "field", "message"),
    [
        ({"image": "data:image/png;base64,AAAA"}, "input.image", "input.image is a file of another kind"),
        ({"image": "cat.png"}, "input.image", 'input.image is "cat.png"; allowed: a picture'),
        ({"image": "https://example.com/a.png"}, "input.image", "since --allow-image-urls is off"),
        ({"prompt_strength": 0}, "input.prompt_strength", "from 0.01 to 1"),
    ],
    ids=str,
)
def test_input_that_is_no_picture_is_refused(
    client: httpx.Client, sent: dict[str, Any], field: str, message: str
) -> None:
    answer = create(client, input=sent)
    assert (answer.status_code, answer.json()["invalid_fields"][0]["field"]) == (422, field)
    assert message in answer.json()["detail"]


def test_a_form_without_a_file_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/files", files={"content": (None, "a")})
    assert (answer.status_code, answer.json()["invalid_fields"][0]["field"]) == (422, "content")
    assert client.post("/v1/files", json={}).status_code == 415
    assert client.get("/v1/files/..%2fsecret").status_code == 404


def test_uploads_are_their_owner_s(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    keys = {name: create_key(file, name) for name in ("alice", "bob")}
    with (
        serving(FakeEngine(), Edge(door=Door(KeysFile.read(file)))) as url,
        httpx.Client(base_url=url) as client,
    ):
        hers, his = ({"Authorization": f"Bearer {keys[name]}"} for name in ("alice", "bob"))
        address = upload(client, headers=hers).json()["urls"]["get"]
        assert client.get(address, headers=hers).status_code == 200
        for answer in (client.get(address, headers=his), client.delete(address, headers=his)):
            assert answer.status_code == 404
        refused = create(client, input={"image": address}, headers=his)
        assert refused.status_code == 422
        assert create(client, input={"image": address}, headers=hers).status_code == 201
        assert client.get(address).status_code == 401
