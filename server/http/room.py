"""How much of large bodies may be in memory at once, whoever sends them.

A body of up to a mebibyte is let in as it comes. A larger one, which is one with pictures, takes its length
out of what all of them share, before it is read, and gives it back when its pictures are decoded. While there
is none left the connection is not read.
"""

import asyncio
from typing import Final

from server.errors import Overloaded

FREE_BYTES: Final = 1 << 20
WAIT_S: Final = 30.0
RETRY_SOON_S: Final = 5.0


class Room:
    """`limit_bytes` for all together. Who waits comes in turn; the time is an attribute, so that a test can
    have little of it."""

    wait_s = WAIT_S

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes
        self._turn = asyncio.Lock()
        self._given = asyncio.Event()

    async def take(self, size_bytes: int) -> None:
        """Wait until there is room for so much; raises `Overloaded` if that takes too long."""
        try:
            async with asyncio.timeout(self.wait_s), self._turn:
                while self._left_bytes < size_bytes:
                    self._given.clear()
                    await self._given.wait()
                self._left_bytes -= size_bytes
        except TimeoutError:
            message = "too many large requests are being read; come back"
            raise Overloaded(message, retry_after_s=RETRY_SOON_S) from None

    def give(self, size_bytes: int) -> None:
        """Give back what was taken."""
        self._left_bytes += size_bytes
        self._given.set()
