"""What is asked for more than once is made once, by the real server, to the same bytes."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Server, running_server
from tests.e2e.test_lifecycle import wait_in_hand

PNG = {"Accept": "image/png"}
LONG = {"prompt": "a tree", "width": 512, "height": 512, "num_inference_steps": 12}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("reuse"), "--image-cache-mb", "16") as running:
        yield running


def post(server: Server, *, directive: str = "", **body: Any) -> httpx.Response:
    headers = PNG | {"Cache-Control": directive}
    return httpx.post(f"{server.url}/v1/generate", json=body, headers=headers, timeout=120)


def begun(server: Server, **body: Any) -> socket.socket:
    """Send a request and leave its answer alone; closing the connection is leaving."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    head = f"POST /v1/generate HTTP/1.1\r\nHost: {host}\r\nAccept: image/png\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


class Counters:
    """How much the server's counters have grown since this was made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = self._read()

    def _read(self) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(httpx.get(f"{self._server.url}/metrics").text)
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }

    def now(self) -> dict[str, float]:
        now = self._read()
        names = {
            "made": ("flux_images_total",),
            "hit": ("flux_image_cache_total", "hit"),
            "flight": ("flux_image_cache_total", "flight"),
            "denoised": ("flux_step_images_sum", "denoise"),
        }
        return {short: now.get(name, 0.0) - self._before.get(name, 0.0) for short, name in names.items()}


def test_eight_at_once_make_one_run(server: Server) -> None:
    counters = Counters(server)
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(post, server, seed=1, **LONG) for _ in range(8)]
        answers = [each.result() for each in asked]
    assert counters.now() == {"made": 1, "hit": 0, "flight": 7, "denoised": 12}
    statuses = sorted(answer.headers["cache-status"] for answer in answers)
    assert statuses == ["schnell-server; fwd=miss"] + ["schnell-server; fwd=miss; collapsed"] * 7
    assert len({answer.headers["x-request-id"] for answer in answers}) == 8
    alone = post(server, seed=1, directive="no-store", **LONG)
    assert {answer.content for answer in answers} == {alone.content}


def test_one_that_leaves_does_not_disturb_the_others(server: Server) -> None:
    counters = Counters(server)
    with ThreadPoolExecutor(2) as clients:
        with begun(server, seed=2, **LONG):
            wait_in_hand(server)
            staying = [clients.submit(post, server, seed=2, **LONG) for _ in range(2)]
            while counters.now()["flight"] < 2:
                assert not any(each.done() for each in staying), "they did not wait for the first"
        answers = [each.result() for each in staying]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert counters.now() == {"made": 1, "hit": 0, "flight": 2, "denoised": 12}
    assert "outcome=client_gone" in server.log


def test_a_batch_and_a_single_picture_meet_in_a_seed(server: Server) -> None:
    body = {"prompt": "three fish", "num_inference_steps": 12}
    with ThreadPoolExecutor(2) as clients:
        four = clients.submit(
            httpx.post,
            f"{server.url}/v1/generate",
            json=body | {"seed": 7, "num_images": 4},
            timeout=120,
        )
        wait_in_hand(server)
        one = clients.submit(post, server, seed=8, **body)
        assert one.result().headers["cache-status"] == "schnell-server; fwd=miss; collapsed"
        assert four.result().status_code == 200
    assert one.result().content == post(server, seed=8, directive="no-store", **body).content


def test_a_finished_picture_comes_again_at_once_and_the_same(server: Server) -> None:
    body = {"prompt": "a house", "seed": 3, "width": 384, "height": 256, "num_inference_steps": 12}
    counters = Counters(server)
    first = post(server, **body)
    again = post(server, **body)
    assert again.content == first.content
    assert again.headers["cache-status"] == "schnell-server; hit"
    assert again.headers["x-seed"] == "3"
    assert again.elapsed < first.elapsed / 5
    assert counters.now() == {"made": 1, "hit": 1, "flight": 0, "denoised": 12}
    fresh = post(server, directive="no-cache", **body)
    assert (fresh.content, fresh.headers["cache-status"]) == (first.content, "schnell-server; fwd=request")
    assert counters.now()["made"] == 2


def test_the_address_and_the_body_share_pictures_and_the_tag_names_them(server: Server) -> None:
    url = f"{server.url}/v1/generate?prompt=a%20star&seed=4"
    made = post(server, prompt="a star", seed=4)
    counters = Counters(server)
    found = httpx.get(url)
    assert (found.content, found.headers["cache-status"]) == (made.content, "schnell-server; hit")
    known = httpx.get(url, headers={"If-None-Match": found.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    same = httpx.get(url + "&negative_prompt=x", headers={"If-None-Match": found.headers["etag"]})
    assert same.status_code == 304, "without guidance it has no say"
    assert counters.now()["made"] == 0


def test_a_drawn_seed_is_never_a_hit(server: Server) -> None:
    counters = Counters(server)
    first = post(server, prompt="a boat")
    assert first.headers["cache-status"] == "schnell-server; fwd=bypass"
    assert post(server, prompt="a boat", seed=int(first.headers["x-seed"])).content == first.content
    assert counters.now() == {"made": 2, "hit": 0, "flight": 0, "denoised": 8}


def test_a_retry_with_its_key_gets_the_picture_of_the_drawn_seed(server: Server) -> None:
    counters = Counters(server)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:

        def ask() -> str | None:
            answer = client.images.generate(prompt="a cat", n=2, extra_headers={"Idempotency-Key": "cat-1"})
            return answer.to_json()

        with ThreadPoolExecutor(4) as clients:
            together = [each.result() for each in [clients.submit(ask) for _ in range(4)]]
        assert {*together, ask()} == {together[0]}
    assert counters.now()["made"] == 2
