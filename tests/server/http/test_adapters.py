"""`/v1/loras`: files stream to the disk, and who may change what is served is asked first."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.app import Edge
from server.http.auth import Door
from server.keys import KeysFile, create
from tests.server.http.fake_engine import MAX_UPLOAD_BYTES, FakeEngine, serving, wait_until

TYPE = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def lonely() -> Iterator[tuple[FakeEngine, httpx.Client]]:
    engine = FakeEngine()
    with serving(engine) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield engine, client


def left_in(engine: FakeEngine) -> list[str]:
    folder = engine.adapters.files._folder
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_an_adapter_is_put_listed_and_deleted(lonely: tuple[FakeEngine, httpx.Client]) -> None:
    engine, client = lonely
    assert client.get("/v1/loras").json() == {"loras": []}
    listed = {"name": "style-1.0", "digest": "d1", "size_bytes": 2, "removable": True}
    put = client.put("/v1/loras/style-1.0", content=b"d1", headers=TYPE)
    assert (put.status_code, put.json()) == (200, listed)
    assert client.get("/v1/loras").json() == {"loras": [listed]}
    assert left_in(engine) == ["style-1.0.safetensors"]
    assert (
        client.put("/v1/loras/style-1.0", content=iter([b"d", b"2"]), headers=TYPE).json()["digest"] == "d2"
    )
    deleted = client.delete("/v1/loras/style-1.0")
    assert (deleted.status_code, deleted.json()) == (200, {"name": "style-1.0", "deleted": True})
    again = client.delete("/v1/loras/style-1.0")
    assert (again.status_code, again.json()["error"]["param"]) == (404, "name")
    assert left_in(engine) == []


def test_a_file_of_many_chunks_is_written_whole(lonely: tuple[FakeEngine, httpx.Client]) -> None:
    engine, client = lonely
    data = bytes(range(97, 123)) * 100_000
    put = client.put("/v1/loras/large", content=data, headers=TYPE)
    assert put.json()["size_bytes"] == len(data)
    assert (engine.adapters.files._folder / "large.safetensors").read_bytes() == data


@pytest.mark.parametrize(
    ("name", "content", "headers", "status", "code", "said"),
    [
        ("bad", b"refuse", TYPE, 422, "invalid_request", "it said so"),
        ("-bad", b"d1", TYPE, 422, "invalid_request", 'name is "-bad"; allowed: 1 to 64 letters'),
        ("flux-schnell", b"d1", TYPE, 422, "invalid_request", "none of the model's names"),
        (
            "a",
            b"d1",
            {"Content-Type": "text/plain"},
            415,
            "unsupported_media_type",
            "application/octet-stream",
        ),
        ("a", b"d1", TYPE | {"Content-Encoding": "gzip"}, 415, "unsupported_media_type", "without encoding"),
        ("a", b"x" * (MAX_UPLOAD_BYTES + 1), TYPE, 413, "request_too_large", "the limit of 4194304 bytes"),
    ],
)
def test_what_is_refused_leaves_nothing(
    lonely: tuple[FakeEngine, httpx.Client],
    name: str,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    said: str,
) -> None:
    engine, client = lonely
    answer = client.put(f"/v1/loras/{name}", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert said in answer.json()["error"]["message"]
    assert (left_in(engine), engine.adapters.served) == ([], ())


def test_a_body_of_unknown_length_is_bounded_too(lonely: tuple[FakeEngine, httpx.Client]) -> None:
    engine, client = lonely
    chunks = (b"x" * (1 << 20) for _ in range(5))
    assert client.put("/v1/loras/a", content=chunks, headers=TYPE).status_code == 413
    assert left_in(engine) == []


def test_a_client_that_leaves_halfway_leaves_nothing(lonely: tuple[FakeEngine, httpx.Client]) -> None:
    engine, client = lonely

    def half() -> Iterator[bytes]:
        yield b"x" * (1 << 20)
        wait_until(lambda: left_in(engine) != [])
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        client.put("/v1/loras/a", content=half(), headers=TYPE)
    wait_until(lambda: left_in(engine) == [])
    assert engine.adapters.served == ()


def test_only_keys_of_administrators_change_what_is_served(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    admin, guest = create(file, "admin", admin=True), create(file, "guest")
    with (
        serving(FakeEngine(), Edge(door=Door(KeysFile.read(file)))) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        statuses = {}
        for name, secret in (("nobody", "no"), ("guest", guest), ("admin", admin)):
            headers = {"Authorization": f"Bearer {secret}"}
            statuses[name] = [
                client.put("/v1/loras/a", content=b"d1", headers=headers | TYPE).status_code,
                client.get("/v1/loras", headers=headers).status_code,
                client.delete("/v1/loras/a", headers=headers).status_code,
            ]
    assert statuses == {"nobody": [401, 401, 401], "guest": [403, 200, 403], "admin": [200, 200, 200]}
