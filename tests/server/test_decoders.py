"""Decoder processes: they are replaced when a picture kills them or takes too long, and hurt nobody else."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import psutil
import pytest

from server.decoders import AT_ONCE, MAX_WAITING, Decoders
from server.decoding import Decode, Decoded, Idle, Refused, Sent, read_answer
from server.errors import NotReady, Overloaded
from server.protocol import FRAME_HEADER, ProtocolError, frame
from tests.server.decoder.pictures import bomb, file_of, gradient, png

LIE = Decoded(width=256, height=256, pixels=b"", mask=None, blend=None)
# A decoder in a few lines: it says that it has started, and reads a question.
PRELUDE = f"""
import os, socket, sys, time
end = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
IDLE = {frame(Idle())!r}
LIE = {frame(LIE)!r}
REFUSED = {frame(Refused(about="image", found="seen", allowed="another"))!r}
end.sendall(IDLE)
end.recv(1 << 16)
"""


def question(data: bytes) -> Decode:
    return Decode(image=Sent(data=memoryview(data), base64=False))


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))


def real() -> Decoders:
    return Decoders(max_pixels=1_000_000, max_body_bytes=1 << 20)


def scripted(script: str) -> Decoders:
    command = (sys.executable, "-c", PRELUDE + script)
    return Decoders(max_pixels=1, max_body_bytes=1 << 20, command=command)


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def test_pictures_are_decoded_one_after_the_other_by_the_same_process() -> None:
    async def story() -> None:
        decoders, before = real(), children()
        for width in (256, 272):
            answer = await decoders.decode(question(file_of(gradient(width))))
            assert isinstance(answer, Decoded)
            assert (answer.width, len(answer.pixels)) == (width, width * 256 * 3)
        assert len(children()) == len(before) + 1
        answer = await decoders.decode(question(bomb(14_000)))
        assert isinstance(answer, Refused)
        assert "14000x14000" in answer.found
        assert len(children()) == len(before) + 1
        await decoders.stop()
        assert children() == before

    run(story)


def test_a_picture_that_takes_more_memory_than_there_is_is_refused() -> None:
    async def story() -> None:
        decoders = Decoders(max_pixels=20_000, max_body_bytes=1 << 20)
        decoders._command = (*decoders._command[:-1], str(100 << 20))  # it needs 70 MiB to live
        decoders._command = tuple("400000000" if each == "20000" else each for each in decoders._command)
        answer = await decoders.decode(question(png(20_000, 20_000, depth=8, colour=6)))
        assert isinstance(answer, Refused)
        assert "memory" in answer.found or "cannot be decoded" in answer.found
        again = await decoders.decode(question(file_of(gradient())))
        assert isinstance(again, Decoded)
        await decoders.stop()

    run(story)


@pytest.mark.parametrize(
    "script",
    [
        "os._exit(1)",
        "end.sendall(b'\\0\\0\\0\\5nonse')",
        "end.sendall(b'\\xff' * 4)",
        "end.sendall(IDLE)",
        "end.sendall(LIE)",
    ],
)
def test_a_decoder_that_dies_or_talks_nonsense_is_replaced(script: str) -> None:
    async def story() -> None:
        decoders, before = scripted(script), children()
        for _ in range(2):
            answer = await decoders.decode(question(b"a"))
            assert isinstance(answer, Refused)
            assert answer.found == "a picture that cannot be decoded"
        assert children() == before

    run(story)


def decoded(width: int, height: int) -> Decoded:
    area = width * height
    return Decoded(width=width, height=height, pixels=bytes(3 * area), mask=bytes(area), blend=bytes(area))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        *((decoded(*size), "{}x{}".format(*size)) for size in ((240, 256), (256, 264), (1552, 256))),
        (decoded(-256, -256), "-256x-256"),
        (msgspec.structs.replace(decoded(256, 272), pixels=b""), "0 bytes of pixels, not 208896"),
        (msgspec.structs.replace(decoded(256, 272), mask=b"a"), "1 bytes of mask, not 69632"),
        (msgspec.structs.replace(decoded(256, 272), blend=bytes(69633)), "69633 bytes of blend, not 69632"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_size_that_is_not_that_of_the_pixels_is_not_believed(answer: Decoded, found: str) -> None:
    with pytest.raises(ProtocolError, match=found):
        read_answer(frame(answer)[FRAME_HEADER.size :])


@pytest.mark.parametrize("size", [(256, 272), (1536, 1536)])
def test_a_size_that_can_be_made_is_believed(size: tuple[int, int]) -> None:
    answer = decoded(*size)
    assert read_answer(frame(answer)[FRAME_HEADER.size :]) == answer


def test_a_decoder_that_died_between_two_pictures_is_not_asked() -> None:
    async def story() -> None:
        decoders, before = real(), children()
        for width in (256, 272):
            assert isinstance(await decoders.decode(question(file_of(gradient(width)))), Decoded)
            (pid,) = set(children()) - set(before)
            os.kill(pid, signal.SIGKILL)
            while not decoders._idle[0].died:
                await asyncio.sleep(0.01)
        await decoders.stop()

    run(story)


def test_a_picture_that_takes_too_long_is_refused_and_its_decoder_ended() -> None:
    async def story() -> None:
        decoders, before = scripted("time.sleep(60)"), children()
        decoders.limit_s = 0.05
        answer = await decoders.decode(question(b"a"))
        assert isinstance(answer, Refused)
        assert "longer than 0.05 s" in answer.found
        assert children() == before

    run(story)


def test_who_leaves_takes_the_decoder_along() -> None:
    async def story() -> None:
        decoders, before = scripted("time.sleep(60)"), children()
        asking = asyncio.create_task(decoders.decode(question(b"a")))
        while children() == before:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
        assert children() == before

    run(story)


def test_a_decoder_that_cannot_start_is_no_fault_of_a_picture() -> None:
    async def story() -> None:
        for command in (("/nonexistent",), (sys.executable, "-c", "")):
            decoders = Decoders(max_pixels=1, max_body_bytes=1, command=command)
            with pytest.raises(NotReady):
                await decoders.decode(question(b"a"))

    run(story)


def test_few_are_decoded_at_once_and_not_too_many_wait_or_for_too_long() -> None:
    async def story() -> None:
        decoders, before = scripted("time.sleep(60)"), children()
        asking = [asyncio.create_task(decoders.decode(question(b"a"))) for _ in range(MAX_WAITING + AT_ONCE)]
        while len(children()) < len(before) + AT_ONCE:
            await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match=f"{MAX_WAITING} pictures wait"):
            await decoders.decode(question(b"a"))
        for each in asking[AT_ONCE:]:
            each.cancel()
        await asyncio.wait(asking[AT_ONCE:])
        decoders.wait_s = 0.05
        with pytest.raises(Overloaded, match=r"longer than 0\.05 s"):
            await decoders.decode(question(b"a"))
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert children() == before

    run(story)
