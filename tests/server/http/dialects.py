"""How each dialect is spoken: what a client sends, how it reads the pictures, and how it reads a failure."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from tests.server.http.fake_engine import wait_until

MODEL = "black-forest-labs/flux-schnell"
APP = "fal-ai/flux/schnell"


@dataclass(frozen=True)
class Dialect:
    """`body` is that of a prompt and a number of pictures, `wrong` has one bad value, of the field `named`.

    `pictures` are those of an answer, asked for until they are there. `complaint` is what an error says, and
    checks the shape in which it is said. `ended` is how a request went, in statuses and in the words that
    clients look for. `key` is how its clients send an API key.
    """

    name: str
    path: str
    body: Callable[[str, int], dict[str, Any]]
    wrong: dict[str, Any]
    named: str
    pictures: Callable[[httpx.Client, httpx.Response], list[bytes]]
    complaint: Callable[[httpx.Response], str]
    ended: Callable[[httpx.Client, httpx.Response], str]
    key: Callable[[str], dict[str, str]]
    most: int = 4
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, client: httpx.Client, prompt: str, *, count: int = 1, **changes: Any) -> httpx.Response:
        """Ask as a client does, with a key if `client` has one."""
        body = changes.pop("json", self.body(prompt, count))
        return client.post(self.path, json=body, headers=self.headers | changes.pop("headers", {}), **changes)


def kind_of(picture: bytes) -> str:
    with Image.open(io.BytesIO(picture)) as opened:
        opened.load()
        return str(opened.format)


def of_address(address: str) -> bytes:
    """The bytes of a `data:` address."""
    assert address.startswith("data:image/")
    return base64.b64decode(address.partition(",")[2], validate=True)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def basic(secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()}


def by_status(client: httpx.Client, answer: httpx.Response) -> str:
    return str(answer.status_code)


def by_prediction(client: httpx.Client, answer: httpx.Response) -> str:
    """A prediction that was accepted has a state of its own."""
    accepted = answer.status_code in (200, 201, 202)
    return f"{answer.status_code} {answer.json()['status']}" if accepted else str(answer.status_code)


def completed(client: httpx.Client, submitted: dict[str, Any]) -> dict[str, Any]:
    """The last state of a request in fal's queue."""
    status: dict[str, Any] = {}

    def is_completed() -> bool:
        status.update(client.get(submitted["status_url"], params={"logs": "1"}).json())
        return bool(status["status"] == "COMPLETED")

    wait_until(is_completed)
    return status


def by_result_of_fal(client: httpx.Client, answer: httpx.Response) -> str:
    if answer.status_code != 200:
        return str(answer.status_code)
    status = completed(client, answer.json())["status"]
    return f"200 {status} {client.get(answer.json()['response_url']).status_code}"


def ready(client: httpx.Client, submitted: dict[str, Any]) -> dict[str, Any]:
    """The last state of a request to Black Forest Labs' API."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(client.get(submitted["polling_url"]).json())
        return bool(found["status"] != "Pending")

    wait_until(has_ended)
    return found


def by_result_of_bfl(client: httpx.Client, answer: httpx.Response) -> str:
    if answer.status_code != 200:
        return str(answer.status_code)
    return f"200 {ready(client, answer.json())['status']}"


def openai_complaint(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert set(error) == {"code", "type", "message", "param", "request_id", "retryable"}
    return str(error["message"])


def hugging_face_complaint(answer: httpx.Response) -> str:
    assert set(answer.json()) == {"error"}
    return str(answer.json()["error"])


def automatic1111_complaint(answer: httpx.Response) -> str:
    assert set(answer.json()) == {"error", "detail", "body", "errors"}
    return str(answer.json()["detail"])


def cog_complaint(answer: httpx.Response) -> str:
    """Text, a list of what is wrong, a prediction that failed, or what it is that is not done here."""
    if answer.headers["content-type"].startswith("text/plain"):
        return answer.text
    content = answer.json()
    if "detail" in content:
        return str(content["detail"][0]["msg"])
    assert content.get("status", "failed") == "failed"
    return str(content["error"])


def replicate_complaint(answer: httpx.Response) -> str:
    """Problem details, or a prediction that failed."""
    content = answer.json()
    if content["status"] == "failed":
        return str(content["error"])
    assert set(content) - {"invalid_fields"} == {"title", "detail", "status"}
    assert content["status"] == answer.status_code
    return str(content["detail"])


def fal_complaint(answer: httpx.Response) -> str:
    content = answer.json()
    if isinstance(content["detail"], list):
        (detail,) = content["detail"]
        assert all(isinstance(part, str) for part in detail["loc"])
        return str(detail["msg"])
    assert answer.headers.get("x-fal-error-type") == content["error_type"]
    return str(content["detail"])


def bfl_complaint(answer: httpx.Response) -> str:
    detail = answer.json()["detail"]
    return str(detail[0]["msg"] if isinstance(detail, list) else detail)


def predicted(prompt: str, count: int) -> dict[str, Any]:
    return {"input": {"prompt": prompt, "num_outputs": count, "megapixels": "0.25", "seed": 7}}


def of_fal(prompt: str, count: int) -> dict[str, Any]:
    size = {"width": 256, "height": 256}
    return {"prompt": prompt, "num_images": count, "image_size": size, "seed": 7}


def outputs(client: httpx.Client, answer: httpx.Response) -> list[bytes]:
    return [of_address(each) for each in answer.json()["output"]]


def fal_images(content: dict[str, Any]) -> list[bytes]:
    return [of_address(image["url"]) for image in content["images"]]


def fal_result(client: httpx.Client, answer: httpx.Response) -> list[bytes]:
    completed(client, answer.json())
    return fal_images(client.get(answer.json()["response_url"]).json())


OPENAI = Dialect(
    "openai",
    "/v1/images/generations",
    lambda prompt, count: {"prompt": prompt, "n": count, "size": "256x256", "seed": 7},
    {"prompt": "a", "size": "1x1"},
    "size",
    lambda client, answer: [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]],
    openai_complaint,
    by_status,
    bearer,
    most=10,
)
HUGGING_FACE = Dialect(
    "huggingface",
    "/hf",
    lambda prompt, count: {"inputs": prompt, "parameters": {"seed": 7}},
    {"inputs": "a", "parameters": {"width": 1}},
    "parameters.width",
    lambda client, answer: [answer.content],
    hugging_face_complaint,
    by_status,
    bearer,
    most=1,
)
AUTOMATIC1111 = Dialect(
    "automatic1111",
    "/sdapi/v1/txt2img",
    lambda prompt, count: {"prompt": prompt, "batch_size": count, "width": 256, "height": 256, "seed": 7},
    {"width": 1},
    "width",
    lambda client, answer: [base64.b64decode(each) for each in answer.json()["images"]],
    automatic1111_complaint,
    by_status,
    basic,
    most=8,
)
COG = Dialect(
    "cog",
    "/predictions",
    predicted,
    {"input": {"prompt": "a", "num_outputs": 9}},
    "num_outputs",
    outputs,
    cog_complaint,
    by_prediction,
    bearer,
)
REPLICATE = Dialect(
    "replicate",
    f"/v1/models/{MODEL}/predictions",
    predicted,
    {"input": {"prompt": "a", "num_outputs": 9}},
    "input.num_outputs",
    outputs,
    replicate_complaint,
    by_prediction,
    lambda secret: {"Authorization": f"Token {secret}"},
    headers={"Prefer": "wait"},
)
FAL_RUN = Dialect(
    "fal run",
    f"/fal/run/{APP}",
    of_fal,
    {"prompt": "a", "num_images": 9},
    "num_images",
    lambda client, answer: fal_images(answer.json()),
    fal_complaint,
    by_status,
    lambda secret: {"Authorization": f"Key {secret}"},
)
FAL_QUEUE = Dialect(
    "fal queue",
    f"/fal/queue/{APP}",
    of_fal,
    {"prompt": "a", "num_images": 9},
    "num_images",
    fal_result,
    fal_complaint,
    by_result_of_fal,
    lambda secret: {"Authorization": f"Key {secret}"},
)
BFL = Dialect(
    "bfl",
    "/bfl/v1/flux-schnell",
    lambda prompt, count: {"prompt": prompt, "width": 256, "height": 256, "seed": 7},
    {"prompt": "a", "width": 0},
    "width",
    lambda client, answer: [of_address(ready(client, answer.json())["result"]["sample"])],
    bfl_complaint,
    by_result_of_bfl,
    lambda secret: {"x-key": secret},
    most=1,
)
ALL = (OPENAI, HUGGING_FACE, AUTOMATIC1111, COG, REPLICATE, FAL_RUN, FAL_QUEUE, BFL)


def told(body: bytes) -> dict[str, Any]:
    """The body of a webhook call."""
    content = json.loads(body)
    assert isinstance(content, dict)
    return content
