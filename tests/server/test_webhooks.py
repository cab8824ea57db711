"""Webhook calls against real receivers on this machine: signed, pinned, retried, and never in the way."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import standardwebhooks

from server.addresses import Addresses, Resolve, networks
from server.errors import InvalidRequest
from server.job import Job, JobKey, JobState, Webhook
from server.job_store import Delivery, JobStore
from server.metrics import Metrics
from server.signatures import Signatures
from server.webhooks import (
    AT_ONCE,
    ATTEMPT_S,
    MAX_ATTEMPTS,
    Webhooks,
    deliveries_of,
    retry_after_s,
)
from tests.server.engines import request

NOW = 1_800_000_000.0


def job(url: str, *events: str, state: JobState = JobState.STARTING, name: str = "j") -> Job:
    return Job(
        key=JobKey("replicate", "", name),
        request=request(),
        seeded=False,
        input={},
        webhook=Webhook(url=url, events=events),
        state=state,
    )


def store_with(folder: Path, wanted: Job) -> JobStore:
    """Return a store in which `wanted` has succeeded, and its calls are owed."""
    store = JobStore(folder / "jobs.sqlite")
    store.open()
    assert store.add(wanted)
    done = msgspec.structs.replace(wanted, state=JobState.SUCCEEDED, completed_s=NOW)
    assert store.move(done, deliveries_of(done, now=0.0))
    return store


async def payload(delivery: Delivery) -> bytes:
    return f'{{"event": "{delivery.event}"}}'.encode()


@dataclass
class Receiver:
    """Answers calls with `answers`, the last one again and again; `got` are heads and bodies."""

    answers: list[bytes]
    port: int = 0
    accepted: int = 0
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.targets.append(head.split(" ")[1])
        lines = [line.partition(": ") for line in head.split("\r\n")[1:-2]]
        headers = {name.lower(): value for name, _, value in lines}
        body = await reader.readexactly(int(headers["content-length"]))
        self.got.append((headers, body))
        self.came.set()
        writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        await writer.drain()
        writer.close()
        await writer.wait_closed()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@asynccontextmanager
async def receiving(*answers: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(answers))
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0, ssl=tls)
    async with server:
        receiver.port = server.sockets[0].getsockname()[1]
        yield receiver


@asynccontextmanager
async def calling(
    store: JobStore, *, allowed: str = "127.0.0.1", resolve: Resolve | None = None
) -> AsyncIterator[tuple[Webhooks, Metrics]]:
    metrics = Metrics()
    addresses = Addresses(networks(allowed), resolve=resolve)
    webhooks = Webhooks(store, {"replicate": payload}, Signatures.of(store), addresses, metrics=metrics)
    await webhooks.start()
    try:
        yield webhooks, metrics
    finally:
        await webhooks.stop()
        store.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def until_owed(store: JobStore, attempts: list[int]) -> None:
    """Wait until the store owes calls that were tried so often; it is asked in its own thread."""
    async with asyncio.timeout(20):
        while [each.attempts for each in await store.run(store.owed)] != attempts:
            await asyncio.sleep(0.01)


def attempts(metrics: Metrics, outcome: str) -> float:
    name = "flux_webhook_attempts_total"
    return metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))  # type: ignore[arg-type]


def test_pauses_grow_and_end() -> None:
    pauses = [retry_after_s(done, chance=0.5) for done in range(1, MAX_ATTEMPTS + 1)]
    assert pauses == [2, 6, 18, 54, 162, 486, 1458, 3600, 3600, None]
    assert (retry_after_s(1, chance=0), retry_after_s(1, chance=1)) == (1, 3)


@pytest.mark.parametrize(
    ("state", "events"),
    [
        (JobState.STARTING, []),
        (JobState.PROCESSING, ["start", "logs"]),
        (JobState.SUCCEEDED, ["output", "completed"]),
        (JobState.FAILED, ["completed"]),
        (JobState.CANCELED, ["completed"]),
    ],
)
def test_what_is_owed_follows_from_the_state(state: JobState, events: list[str]) -> None:
    everything = job("http://x", "start", "logs", "output", "completed", state=state)
    if state is JobState.STARTING:
        return
    assert [each.event for each in deliveries_of(everything, now=NOW)] == events
    assert deliveries_of(job("http://x", state=state), now=NOW) == ()


def test_a_call_is_made_once_when_it_is_taken(tmp_path: Path) -> None:
    async def story() -> None:
        async with receiving(OK) as receiver:
            store = store_with(tmp_path, job(f"http://127.0.0.1:{receiver.port}/a;v=1?b=c", "completed"))
            async with calling(store) as (webhooks, metrics):
                await until(lambda: attempts(metrics, "delivered") == 1)
                await until_owed(store, [])
                ((headers, body),) = receiver.got
                standardwebhooks.Webhook(webhooks.signatures.secret_of("")).verify(body, headers)
                assert receiver.targets == ["/a;v=1?b=c"]
                assert headers["host"] == f"127.0.0.1:{receiver.port}"
                assert headers["accept-encoding"] == "identity"

    run(story)


def test_what_was_not_taken_is_called_again_by_the_next_process(tmp_path: Path) -> None:
    async def story() -> None:
        async with receiving(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", OK) as receiver:
            store = store_with(tmp_path, job(f"http://127.0.0.1:{receiver.port}", "completed"))
            async with calling(store) as (first, metrics):
                await until(lambda: attempts(metrics, "failed") == 1)
                await until_owed(store, [1])
            store = JobStore(tmp_path / "jobs.sqlite")
            store.open()
            async with calling(store) as (second, metrics):
                await until(lambda: attempts(metrics, "delivered") == 1)
                assert second.signatures.secret_of("") == first.signatures.secret_of("")
            assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1

    run(story)


def test_a_fault_of_ours_is_tried_again(tmp_path: Path) -> None:
    async def fail(delivery: Delivery) -> bytes:
        raise ZeroDivisionError

    async def story() -> None:
        store = store_with(tmp_path, job("http://127.0.0.1:9", "completed"))
        metrics = Metrics()
        webhooks = Webhooks(store, {"replicate": fail}, Signatures.of(store), Addresses(), metrics=metrics)
        await webhooks.start()
        await until_owed(store, [1])
        assert attempts(metrics, "failed") == 1
        await webhooks.stop()
        store.close()

    run(story)


def test_one_whose_receivers_are_slow_does_not_hold_up_another(tmp_path: Path) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def story() -> None:
        store = JobStore(tmp_path / "jobs.sqlite")
        store.open()
        slow = await asyncio.start_server(never_answer, "127.0.0.1", 0)
        async with slow, receiving(OK) as receiver:
            port = slow.sockets[0].getsockname()[1]
            urls = [("me", f"http://slow-{number}:{port}") for number in range(2 * AT_ONCE)]
            for owner, url in [*urls, ("you", f"http://127.0.0.1:{receiver.port}")]:
                wanted = job(url, "completed", name=url)
                wanted = msgspec.structs.replace(wanted, key=JobKey("replicate", owner, url))
                assert store.add(wanted)
                done = msgspec.structs.replace(wanted, state=JobState.SUCCEEDED, completed_s=NOW)
                assert store.move(done, deliveries_of(done, now=0.0))
            async with calling(store, resolve=resolve), asyncio.timeout(ATTEMPT_S / 2):
                await receiver.came.wait()

    run(story)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", "failed"),
        (b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n", "gone"),
        (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", "failed"),
        (b"nonsense\r\n\r\n", "failed"),
        (b"", "failed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + b"x" * (1 << 20), "delivered"),
    ],
    ids=["redirect", "gone", "missing", "nonsense", "nothing", "endless"],
)
def test_receivers_that_misbehave(tmp_path: Path, answer: bytes, outcome: str) -> None:
    async def story() -> None:
        async with receiving(answer) as receiver:
            store = store_with(tmp_path, job(f"http://127.0.0.1:{receiver.port}", "completed"))
            async with calling(store) as (_, metrics):
                await until(lambda: attempts(metrics, outcome) == 1)
            assert receiver.accepted == 1

    run(story)


def test_a_name_that_moves_inside_after_it_was_checked_is_not_called(tmp_path: Path) -> None:
    async def story() -> None:
        answers = [["93.184.215.14"], ["127.0.0.1"]]

        async def resolve(host: str, port: int) -> list[str]:
            return answers.pop(0)

        async with receiving(OK) as receiver:
            url = f"http://rebind.example:{receiver.port}/"
            store = store_with(tmp_path, job(url, "completed"))
            addresses = Addresses(resolve=resolve)
            metrics = Metrics()
            webhooks = Webhooks(
                store, {"replicate": payload}, Signatures.of(store), addresses, metrics=metrics
            )
            await webhooks.check(url, field="webhook")
            await webhooks.start()
            await until(lambda: attempts(metrics, "refused") == 1)
            await until_owed(store, [])
            await webhooks.stop()
            store.close()
            assert receiver.accepted == 0

    run(story)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=hooks.example "
    command += "-addext subjectAltName=DNS:hooks.example -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("host", "outcome"), [("hooks.example", "delivered"), ("other.example", "failed")])
def test_tls_is_verified_for_the_name_though_the_address_is_pinned(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, host: str, outcome: str
) -> None:
    async def resolve(name: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def story() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        async with receiving(OK, tls=context) as receiver:
            store = store_with(tmp_path, job(f"https://{host}:{receiver.port}", "completed"))
            async with calling(store, resolve=resolve) as (_, metrics):
                await until(lambda: attempts(metrics, outcome) == 1)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    run(story)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "ftp://example.com/",
        "http://",
        "http://:80/",
        "http://user:word@93.184.215.14/",
        "http://93.184.215.14:99999/",
        "http://exämple.com/",
        "http://a b/",
        "http://93.184.215.14/\n",
        "http://[::1",
        f"http://{'a' * 64}.com/",
        "http://a..b/",
        f"http://93.184.215.14/{'a' * 3000}",
    ],
)
def test_what_is_no_url_to_call_is_refused_when_it_comes(tmp_path: Path, url: str) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    store.open()
    webhooks = Webhooks(store, {}, Signatures.of(store), Addresses(), metrics=Metrics())
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(webhooks.check(url, field="webhook"))
    assert caught.value.field == "webhook"
    store.close()
