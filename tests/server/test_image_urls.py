"""Pictures by URL, from real servers on this machine: only where allowed, and never more than a picture."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from server.addresses import Addresses, Resolve, networks
from server.errors import InvalidRequest
from server.image_urls import ImageUrls

LIMIT_BYTES = 10_000


def reply(body: bytes, kind: str = "image/png", status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def answering(data: bytes, *, then_wait: bool = False) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve `data` at a URL, which it yields with the heads of what was asked."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(data)
        if then_wait:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/cat.png?size=1", asked


def urls(allowed: str = "127.0.0.1", resolve: Resolve | None = None) -> ImageUrls:
    return ImageUrls(Addresses(networks(allowed), resolve=resolve), limit_bytes=LIMIT_BYTES)


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))  # type: ignore[arg-type]


async def refusal(fetching: Awaitable[bytes]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await fetching
    assert caught.value.field == "image"
    assert len(caught.value.message) < 300
    return caught.value.message


def test_a_picture_is_fetched() -> None:
    async def story() -> None:
        for kind in ("image/png", "IMAGE/webp; x=y", "application/octet-stream"):
            async with answering(reply(b"picture", kind)) as (url, asked):
                assert await urls().fetch(url, field="image") == b"picture"
                assert asked[0].startswith("GET /cat.png?size=1 HTTP/1.1\r\nHost: 127.0.0.1:")
                assert "cookie" not in asked[0].lower()

    run(story)


def test_nothing_is_fetched_where_that_is_not_allowed() -> None:
    async def story() -> None:
        closed = ImageUrls(None, limit_bytes=LIMIT_BYTES)
        message = await refusal(closed.fetch("http://127.0.0.1/", field="image"))
        assert "--allow-image-urls is off" in message

    run(story)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://0x7f.1/",
        "http://me:secret@example.com/",
        "http://exa mple.com/",
        "http:///",
        "http://example.com:99999/",
    ],
)
def test_addresses_inside_and_odd_urls_are_refused(url: str) -> None:
    async def story() -> None:
        message = await refusal(urls(allowed="").fetch(url, field="image"))
        assert message.endswith("allowed: an http or https URL of a public host, without user and password")

    run(story)


def test_a_name_that_changes_its_mind_is_not_followed_inside() -> None:
    async def story() -> None:
        answers = [["93.184.216.34"], ["127.0.0.1"]]

        async def resolve(host: str, port: int) -> list[str]:
            return answers.pop(0)

        async with answering(reply(b"inside")) as (url, asked):
            changing = url.replace("127.0.0.1", "example.com")
            message = await refusal(urls("", resolve).fetch(changing, field="image"))
            assert "not to be called" in message
            assert asked == []

    run(story)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (reply(b"", status="404 Not Found"), "answers with status 404"),
        (reply(b"", "image/png", "302 Found", "location: http://127.0.0.1/"), "status 302, a redirect"),
        (reply(b"<html>", "text/html"), 'answers with "text/html"'),
        (reply(b"x" * (LIMIT_BYTES + 1)), "longer than 10000 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n" + b"x" * 50_000, "longer than 10000 bytes"),
        (b"nonsense\r\n\r\n", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort", "cannot be reached"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    async def story() -> None:
        async with answering(data) as (url, asked):
            assert reason in await refusal(urls().fetch(url, field="image"))
            assert len(asked) == 1

    run(story)


def test_who_does_not_answer_is_not_waited_for() -> None:
    async def story() -> None:
        async with answering(b"HTTP/1.1 200 OK\r\n", then_wait=True) as (url, _):
            impatient = urls()
            impatient.fetch_s = 0.05
            assert "did not answer within 0.05 s" in await refusal(impatient.fetch(url, field="image"))
        assert "cannot be reached" in await refusal(urls().fetch("http://127.0.0.1:9/", field="image"))

    run(story)
