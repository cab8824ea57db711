"""How a client opts out of the pictures of others, and how it learns where its own came from."""

import httpx
import pytest

from server.reuse import Reuse
from tests.server.http.fake_engine import FakeEngine, serving

SEEDED = {"prompt": "a", "seed": 1}
PATHS = ["/v1/generate", "/v1/images/generations"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("sent", "reuse"),
    [
        ([], Reuse.ALLOWED),
        (["no-cache"], Reuse.FRESH),
        (["No-Cache"], Reuse.FRESH),
        (["no-store"], Reuse.NEVER),
        (["no-cache, no-store"], Reuse.NEVER),
        (["no-cache", "no-store"], Reuse.NEVER),
        (["max-age=0 , no-cache"], Reuse.FRESH),
        (["max-age=0"], Reuse.ALLOWED),
        (['x="no-such, thing"', "nonsense;;=,"], Reuse.ALLOWED),
    ],
    ids=str,
)
def test_a_client_says_what_may_be_reused(
    client: httpx.Client, engine: FakeEngine, path: str, sent: list[str], reuse: Reuse
) -> None:
    headers = [("Cache-Control", value) for value in sent]
    assert client.post(path, json=SEEDED, headers=headers).status_code == 200
    assert engine.reuses[-1] is reuse


def test_an_address_is_asked_for_in_the_same_way(client: httpx.Client, engine: FakeEngine) -> None:
    for directive, reuse in (("", Reuse.ALLOWED), ("no-cache", Reuse.FRESH), ("no-store", Reuse.NEVER)):
        client.get("/v1/generate?prompt=a&seed=1", headers={"Cache-Control": directive})
        assert engine.reuses[-1] is reuse


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("directive", ["", "no-cache"])
def test_a_drawn_seed_is_nobody_elses(
    client: httpx.Client, engine: FakeEngine, path: str, directive: str
) -> None:
    client.post(path, json={"prompt": "a"}, headers={"Cache-Control": directive})
    assert engine.reuses[-1] is Reuse.NEVER
    client.get("/v1/generate?prompt=a", headers={"Cache-Control": directive})
    assert engine.reuses[-1] is Reuse.NEVER


@pytest.mark.parametrize(
    ("cached", "joined", "status"),
    [
        (0, 0, "fwd=miss"),
        (4, 0, "hit"),
        (0, 4, "fwd=miss; collapsed"),
        (0, 3, "fwd=miss"),
        (1, 2, "fwd=partial"),
        (1, 3, "fwd=partial; collapsed"),
    ],
)
def test_an_answer_tells_where_its_pictures_came_from(cached: int, joined: int, status: str) -> None:
    with serving(FakeEngine(found=(cached, joined))) as url:
        answer = httpx.post(f"{url}/v1/generate", json=SEEDED | {"num_images": 4})
    assert answer.headers["cache-status"] == f"schnell-server; {status}"


def test_an_answer_tells_why_nothing_was_reused(client: httpx.Client) -> None:
    for body, directive, status in (
        (SEEDED, "no-cache", "fwd=request"),
        (SEEDED, "no-store", "fwd=request"),
        ({"prompt": "a"}, "", "fwd=bypass"),
    ):
        answer = client.post("/v1/generate", json=body, headers={"Cache-Control": directive})
        assert answer.headers["cache-status"] == f"schnell-server; {status}"


def test_what_makes_no_picture_has_no_status(client: httpx.Client) -> None:
    known = client.get("/v1/generate?prompt=a&seed=1").headers["etag"]
    for answer in (
        client.get("/v1/generate?prompt=a&seed=1", headers={"If-None-Match": known}),
        client.post("/v1/generate", json={"prompt": "overloaded", "seed": 1}),
        client.get("/livez"),
    ):
        assert "cache-status" not in answer.headers


@pytest.mark.parametrize("directive", ["no-cache", "no-store"])
def test_a_client_that_has_the_picture_needs_no_run_to_be_told_so(
    client: httpx.Client, engine: FakeEngine, directive: str
) -> None:
    """The tag says that the picture is still the right one: no-cache asks for no more than that."""
    url = "/v1/generate?prompt=a&seed=1"
    known = client.get(url).headers["etag"]
    before = len(engine.requests)
    answer = client.get(url, headers={"If-None-Match": known, "Cache-Control": directive})
    assert answer.status_code == 304
    assert len(engine.requests) == before
