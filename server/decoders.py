"""The decoder processes: pictures of strangers are unpacked there, so that none can hurt the front end.

`server.http` asks here for every picture that comes in. A decoder has one picture at a time and starts with
the first; one that dies of it, or takes too long, is replaced, and the picture is refused.
"""

import asyncio
import socket
import sys
from collections.abc import Sequence
from typing import Final

import structlog

from server.child import end, spawn
from server.decoding import MAX_TO_FRONT_BYTES, Answer, Decode, FromDecoder, Idle, Refused, read_answer
from server.errors import NotReady, Overloaded
from server.protocol import FRAME_HEADER, ProtocolError, body_length, frame

DECODER_COMMAND: Final = (sys.executable, "-m", "server.decoder")
AT_ONCE: Final = 2
MAX_WAITING: Final = 64
WAIT_S: Final = 30.0  # for one's turn: a picture made for it holds a decoder for all of its time
LIMIT_S: Final = 20.0  # 25 megapixels of progressive JPEG take 0.8 s, of WebP with a mask as large 3.2 s
START_S: Final = 20.0
READ_BYTES: Final = 1 << 20
MESSAGE_BYTES: Final = 64 << 10  # of a message beside the pictures in it
# Pillow has four bytes a pixel, and up to six copies are there at once: of a WebP file, or with a profile.
# With 25 megapixels of picture and mask 0.75 GB were seen.
OWN_BYTES: Final = 512 << 20
BYTES_PER_PIXEL: Final = 32
RETRY_SOON_S: Final = 2.0

log = structlog.get_logger(__name__)


class Decoders:
    """Unpacks pictures of at most `max_pixels`, out of requests of at most `max_body_bytes`.

    The times are class attributes, so that a test can have little of them.
    """

    wait_s = WAIT_S
    limit_s = LIMIT_S

    def __init__(
        self, *, max_pixels: int, max_body_bytes: int, command: Sequence[str] = DECODER_COMMAND
    ) -> None:
        self._command = (
            *command,
            *("--max-pixels", str(max_pixels)),
            *("--max-bytes", str(max_body_bytes + MESSAGE_BYTES)),
            *("--memory-bytes", str(OWN_BYTES + BYTES_PER_PIXEL * max_pixels + 3 * max_body_bytes)),
        )
        self._idle: list[_Decoder] = []
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def decode(self, asked: Decode) -> Answer:
        """Return what the picture is made into, or why it is not; raises `Overloaded` or `NotReady`."""
        await self._turn()
        try:
            decoder = await self._idle_or_new()
            answer = await decoder.answer(asked, within_s=self.limit_s)
            if decoder.alive:
                self._idle.append(decoder)
            return answer
        finally:
            self._turns.release()

    async def _turn(self) -> None:
        """Wait until fewer than `AT_ONCE` are decoded; raises `Overloaded` if that takes too long."""
        if self._waiting >= MAX_WAITING:
            message = f"{self._waiting} pictures wait to be decoded"
            raise Overloaded(message, retry_after_s=RETRY_SOON_S)
        self._waiting += 1
        try:
            async with asyncio.timeout(self.wait_s):
                await self._turns.acquire()
        except TimeoutError:
            message = f"the pictures of others take longer than {self.wait_s:g} s to decode"
            raise Overloaded(message, retry_after_s=RETRY_SOON_S) from None
        finally:
            self._waiting -= 1

    async def _idle_or_new(self) -> "_Decoder":
        """Return one that lives: while it had nothing to do the kernel may have killed it for its memory."""
        while self._idle:
            decoder = self._idle.pop()
            if not decoder.died:
                return decoder
            log.warning("decoder_lost", reason="it died between two pictures")
            await decoder.end()
        return _Decoder(self._command)

    async def stop(self) -> None:
        """End the decoders that have nothing to do; those that have end with the requests that wait."""
        for decoder in self._idle:
            await decoder.end()
        self._idle.clear()


class _Decoder:
    """One process, from its first picture on."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None

    @property
    def died(self) -> bool:
        """Whether its process is gone, though nobody ended it."""
        return self._process is not None and self._process.returncode is not None

    async def answer(self, asked: Decode, *, within_s: float) -> Answer:
        """Ask; a decoder that does not answer this is ended, and so is one whose asker leaves."""
        answer: Answer | None = None
        try:
            if not self.alive:
                await self._start()
            async with asyncio.timeout(within_s):
                answer = await self._ask(asked)
                return answer
        except TimeoutError:
            found = f"a picture that takes longer than {within_s:g} s to decode"
            return Refused(about="image", found=found, allowed="one that is decoded sooner")
        except (asyncio.IncompleteReadError, ConnectionError, ProtocolError) as error:
            log.warning("decoder_lost", reason=type(error).__name__)
            return Refused(about="image", found="a picture that cannot be decoded", allowed="one that can")
        finally:
            if answer is None:
                await self.end()

    async def end(self) -> None:
        """End the process, whatever it does."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        if self._process is not None:
            process, self._process = self._process, None
            await end(process, within_s=0.0)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await spawn(self._command, theirs)
            self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=READ_BYTES)
            async with asyncio.timeout(START_S):
                assert isinstance(await self._hear(), Idle), "a decoder begins so"
        except (OSError, asyncio.IncompleteReadError, ProtocolError) as error:  # a TimeoutError is an OSError
            log.exception("decoder_not_started", command=self._command)
            message = "pictures cannot be decoded at the moment"
            raise NotReady(message, retry_after_s=RETRY_SOON_S) from error
        finally:
            if self._writer is None:
                ours.close()

    async def _ask(self, asked: Decode) -> Answer:
        assert self._writer is not None, "it is alive"
        self._writer.write(frame(asked))
        await self._writer.drain()
        answer = await self._hear()
        if isinstance(answer, Idle):
            raise ProtocolError("it says that it is idle, and was asked")
        return answer

    async def _hear(self) -> FromDecoder:
        header = await self._reader.readexactly(FRAME_HEADER.size)
        length = body_length(header, limit_bytes=MAX_TO_FRONT_BYTES)
        return read_answer(await self._reader.readexactly(length))
