"""Black Forest Labs' dialect at the edge: put in, asked after, and what is wrong."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.http.bfl import FluxBody, bfl_payload, size_of, to_request
from server.http.leniency import Leniency
from server.http.outputs import Outputs
from server.job import Job, JobKey, JobState, StoredImage
from server.job_store import Delivery
from server.picture_files import PictureFiles
from tests.server.decoder.pictures import file_of, gradient
from tests.server.http.fake_engine import FakeEngine, serving, wait_until

SUBMIT = "/bfl/v1/flux-schnell"
SMALL = {"prompt": "a cat", "width": 256, "height": 272, "seed": 5}


def ended(client: httpx.Client, submitted: dict[str, Any]) -> dict[str, Any]:
    """Ask until a request is no longer pending."""
    answer: dict[str, Any] = {}

    def has_ended() -> bool:
        answer.update(client.get(submitted["polling_url"]).json())
        return bool(answer["status"] != "Pending")

    wait_until(has_ended)
    return answer


def test_a_request_is_put_in_and_asked_after(client: httpx.Client, engine: FakeEngine) -> None:
    sent = SMALL | {"steps": 28, "guidance": 3, "prompt_upsampling": True, "safety_tolerance": 2}
    submitted = client.post(SUBMIT, json=sent).json()
    assert set(submitted) == {"id", "polling_url"}
    answer = ended(client, submitted)
    assert (answer["status"], answer["result"]["seed"], answer["result"]["prompt"]) == ("Ready", 5, "a cat")
    assert answer["result"]["sample"].startswith("data:image/jpeg;base64,")
    assert answer["result"]["duration"] >= 0
    assert (engine.last().steps, engine.last().width, engine.last().height) == (12, 256, 272)


def test_one_that_failed_says_so(client: httpx.Client) -> None:
    answer = ended(client, client.post(SUBMIT, json={"prompt": "generation_failed"}).json())
    assert (answer["status"], answer["result"]) == ("Error", None)
    assert answer["details"] == {"message": "the picture holds NaN"}


@pytest.mark.parametrize(
    ("sent", "made"),
    [
        ({}, (1024, 768)),
        ({"width": 1440}, (1440, 768)),
        ({"aspect_ratio": "1:1"}, (1024, 1024)),
        ({"aspect_ratio": "16:9"}, (1360, 768)),
        ({"aspect_ratio": "1:99999"}, (256, 1536)),
        ({"aspect_ratio": "16:9", "width": 512, "height": 512}, (512, 512)),
    ],
    ids=str,
)
def test_sizes_are_sides_or_one_megapixel_of_a_ratio(sent: dict[str, Any], made: tuple[int, int]) -> None:
    assert size_of(FluxBody(prompt="a cat", **sent)) == made


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt": 5}, "prompt"),
        ({"width": 0}, "width"),
        ({"aspect_ratio": "wide"}, "aspect_ratio"),
        ({"aspect_ratio": "\x153:1", "width": None}, "aspect_ratio"),
        ({"aspect_ratio": "1:1:1"}, "aspect_ratio"),
        ({"output_format": "webp"}, "output_format"),
        ({"image_prompt": "aGk="}, "image_prompt"),
        ({"webhook_url": "ftp://a"}, "webhook_url"),
    ],
    ids=str,
)
def test_bad_input_is_named(client: httpx.Client, wrong: dict[str, Any], field: str) -> None:
    answer = client.post(SUBMIT, json=SMALL | wrong)
    (detail,) = answer.json()["detail"]
    assert (answer.status_code, detail["loc"]) == (422, ["body", field])
    assert "another value" not in detail["msg"]


def test_what_is_not_there_is_not_found(client: httpx.Client) -> None:
    answer = client.get("/bfl/v1/get_result", params={"id": "nothing"})
    assert (answer.status_code, answer.json()["status"]) == (404, "Task not found")


def test_names_of_models_are_checked_where_the_server_is_set_so(client: httpx.Client) -> None:
    assert client.post("/bfl/v1/anything", json=SMALL).status_code == 200
    with serving(FakeEngine(), strict_models=True) as url:
        assert httpx.post(f"{url}/bfl/v1/flux-dev", json=SMALL).status_code == 200
        refused = httpx.post(f"{url}/bfl/v1/anything", json=SMALL)
        assert (refused.status_code, set(refused.json())) == (404, {"detail"})


def test_a_webhook_tells_the_result_with_an_address(tmp_path: Path) -> None:
    image = StoredImage(name="x.jpg", content_type="image/jpeg", width=256, height=256, seed=5, size_bytes=9)
    job = Job(
        key=JobKey("bfl", "", "7"),
        request=to_request(FluxBody(prompt="a cat", seed=5), None, Leniency(), id="7"),
        seeded=True,
        input={"model": "flux-dev"},
        base_url="http://a",
        state=JobState.SUCCEEDED,
        images=(image,),
    )
    payload = bfl_payload(Outputs(PictureFiles(tmp_path, lifetime_s=60)))
    delivery = Delivery(id="msg_1", event="completed", job=job, attempts=0, due_s=0)
    told = json.loads(asyncio.run(payload(delivery)))  # type: ignore[arg-type]
    assert (told["id"], told["status"]) == ("7", "Ready")
    assert told["result"]["sample"] == "http://a/files/x.jpg"


@pytest.mark.parametrize("name", ["image_prompt", "input_image"])
def test_a_picture_is_where_a_request_starts(client: httpx.Client, engine: FakeEngine, name: str) -> None:
    plain = base64.b64encode(file_of(gradient())).decode()
    for sent, strength in (
        ({}, 0.6),
        ({"image_prompt_strength": 0.25}, 0.75),
        ({"image_prompt_strength": 1}, 0.01),
    ):
        submitted = client.post(SUBMIT, json={"prompt": "a", name: plain} | sent).json()
        assert ended(client, submitted)["status"] == "Ready"
        asked = engine.last()
        assert asked.source is not None
        assert (asked.source.pixels, asked.source.strength) == (gradient().tobytes(), strength)
        assert (asked.width, asked.height) == gradient().size
    masked = {"prompt": "a", name: plain, "mask": plain, "width": 256, "height": 256}
    ended(client, client.post(SUBMIT, json=masked).json())
    found = engine.last().source
    assert found is not None
    assert (found.strength, len(found.mask or b"")) == (1.0, 256 * 256)
    refused = client.post(SUBMIT, json={"prompt": "a", name: "AAAA"})
    assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["body", name])
