"""What keys have used of today, kept on the disk so that a restart does not begin the day anew.

Written every few seconds and at the end; a process that is killed forgets what was used since it last wrote.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from server.quotas import Quotas, Today

EVERY_S: Final = 5.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class UsageFile:
    """Keeps the use that `quotas` counts in a file of JSON."""

    path: Path
    quotas: Quotas
    clock: Callable[[], float] = time.time
    every_s: float = EVERY_S
    _written: Today | None = None

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Take up what an earlier process left, and keep the file up to date meanwhile."""
        self.load()
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            self.save()

    def load(self) -> None:
        """Count what the file says was used today; one that is missing or broken says nothing."""
        try:
            today = msgspec.json.decode(self.path.read_bytes(), type=Today)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("usage_not_read", path=str(self.path), reason=str(error))
            return
        self.quotas.take_up(today, self.clock())

    def save(self) -> None:
        """Write the file anew if there is something new in it."""
        today = self.quotas.today(self.clock())
        if today == self._written:
            return
        new = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(msgspec.json.encode(today))
            new.replace(self.path)
            self._written = today
        except OSError as error:
            log.warning("usage_not_kept", path=str(self.path), reason=error.strerror)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            self.save()
