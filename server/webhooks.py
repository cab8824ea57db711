"""Webhook calls: signed, retried for hours and over restarts, never to the inside.

`server.jobs` owes a call when a job moves, in the same transaction; here it is made, at least once, under an
id that stays the same. What it says is the affair of the job's dialect, how it is signed `server.signatures`.
"""

import asyncio
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import httpcore
import msgspec
import structlog

from server import __version__
from server.addresses import Addresses, AddressRefused
from server.errors import StorageUnavailable
from server.job import Job, JobKey, JobState
from server.job_store import Delivery, JobStore
from server.metrics import Metrics
from server.outbound import CheckedBackend, check_url, target_of
from server.signatures import Signatures

ATTEMPT_S: Final = 15.0
ANSWER_BYTES: Final = 64 << 10
AT_ONCE: Final = 16
AT_ONCE_PER_OWNER: Final = 8  # one whose receivers are slow does not take all turns
AT_ONCE_PER_HOST: Final = 2
MAX_ATTEMPTS: Final = 10
FIRST_RETRY_S: Final = 2.0
LONGEST_RETRY_S: Final = 3600.0
GONE: Final = 410  # the receiver wants no more of it

Outcome = Literal["delivered", "refused", "gone", "failed"]
Payload = Callable[[Delivery], Awaitable[bytes]]


class Signer(Protocol):
    """Returns the headers that sign a call with this body at this Unix time."""

    def __call__(self, delivery: Delivery, body: bytes, *, now: float) -> dict[str, str]: ...


NO_SIGNERS: Final[Mapping[str, Signer]] = MappingProxyType({})

log = structlog.get_logger(__name__)


def deliveries_of(job: Job, *, now: float) -> tuple[Delivery, ...]:
    """Return the calls that are owed because `job` is in the state that it is in now."""
    if job.webhook is None:
        return ()
    running = msgspec.structs.replace(job, state=JobState.PROCESSING, completed_s=None)
    happened = {
        JobState.PROCESSING: (("start", msgspec.structs.replace(job, started_s=None)), ("logs", job)),
        JobState.SUCCEEDED: (("output", running), ("completed", job)),
    }.get(job.state, (("completed", job),))
    return tuple(
        Delivery(id=f"msg_{secrets.token_hex(16)}", event=event, job=snapshot, attempts=0, due_s=now)
        for event, snapshot in happened
        if event in job.webhook.events
    )


def retry_after_s(attempts: int, *, chance: float) -> float | None:
    """Return the pause after so many attempts, about three times the one before; None to give up.

    `chance` from 0 to 1 spreads it over half to one and a half of that: who failed together does not come
    back together. Ten attempts are two and a half hours.
    """
    if attempts >= MAX_ATTEMPTS:
        return None
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 3.0 ** (attempts - 1)) * (0.5 + chance)


class Webhooks:
    """Makes the calls that `store` says are owed. `payloads` are the bodies, by the dialect of the job.

    `signers` are for dialects that sign in a way of their own too. `clock` is Unix time.
    """

    def __init__(
        self,
        store: JobStore,
        payloads: Mapping[str, Payload],
        signatures: Signatures,
        addresses: Addresses,
        *,
        metrics: Metrics,
        signers: Mapping[str, Signer] = NO_SIGNERS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self.signatures = signatures
        self._payloads = payloads
        self._signers = signers
        self._addresses = addresses
        self._metrics = metrics
        self._clock = clock
        self._calls: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._turns_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._turns_at: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._orders: WeakValueDictionary[JobKey, asyncio.Lock] = WeakValueDictionary()
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def start(self) -> None:
        """Take up what an earlier process still owed."""
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=AT_ONCE,
            max_keepalive_connections=0,  # an address is checked for every call
            network_backend=CheckedBackend(self._addresses),
        )
        self.owe(await self._store.run(self._store.owed))

    async def stop(self) -> None:
        """Leave what is owed to the next process."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        if self._pool is not None:
            await self._pool.aclose()

    def owe(self, deliveries: Iterable[Delivery]) -> None:
        """Make these calls, each when it is due; they are stored."""
        for delivery in deliveries:
            call = asyncio.create_task(self._deliver(delivery))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def check(self, url: str, *, field: str) -> None:
        """Raise `InvalidRequest` for a URL that will never be called; `field` is the client's name for it."""
        await check_url(url, self._addresses, field=field)

    async def _deliver(self, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(min(delivery.due_s - self._clock(), 2 * LONGEST_RETRY_S))
            async with self._turn(delivery):
                try:
                    outcome = await self._attempt(delivery)
                except Exception:  # a fault of ours, which another version may not have
                    log.exception("webhook_failed", id=delivery.id)
                    outcome = "failed"
            attempts = delivery.attempts + 1
            pause_s = retry_after_s(attempts, chance=random.random()) if outcome == "failed" else None
            self._metrics.webhook("given_up" if outcome == "failed" and pause_s is None else outcome)
            if pause_s is None:
                with suppress(StorageUnavailable):  # then it is called again after a restart, under its id
                    await self._store.run(self._store.settle, delivery.id)
                return
            delivery = msgspec.structs.replace(delivery, attempts=attempts, due_s=self._clock() + pause_s)
            with suppress(StorageUnavailable):
                await self._store.run(self._store.postpone, delivery)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        """Call once; whatever the other side does, this ends in time."""
        assert self._pool is not None, "it was started"
        webhook = delivery.job.webhook
        assert webhook is not None, "only jobs with a webhook owe calls"
        body = await self._payloads[delivery.job.key.dialect](delivery)
        url = urlsplit(webhook.url)
        headers = {
            "Host": url.netloc,
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": f"schnell-server/{__version__}",
            **self._signed(delivery, body),
        }
        reason = ""
        try:
            async with (
                asyncio.timeout(ATTEMPT_S),
                self._pool.stream(
                    "POST", target_of(url), headers=list(headers.items()), content=body
                ) as answer,
            ):
                reason = f"status {answer.status}"
                if 200 <= answer.status < 300:
                    await _read_some(answer)
                    return "delivered"
                if answer.status == GONE:
                    return "gone"
                return "failed"
        except AddressRefused as refused:
            reason = str(refused)
            return "refused"
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
            reason = type(error).__name__  # a TimeoutError is an OSError; names and paths of its URL stay out
            return "failed"
        finally:
            log.info("webhook", id=delivery.id, about=delivery.event, host=url.hostname, outcome=reason)

    def _signed(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        now = self._clock()
        headers = self.signatures.standard_headers(delivery, body, now=now)
        signer = self._signers.get(delivery.job.key.dialect)
        return headers if signer is None else headers | signer(delivery, body, now=now)

    @asynccontextmanager
    async def _turn(self, delivery: Delivery) -> AsyncIterator[None]:
        """Wait for a turn: calls of one job one after the other, a few at once for a host, an owner, all."""
        webhook = delivery.job.webhook
        assert webhook is not None, "only jobs with a webhook owe calls"
        host = urlsplit(webhook.url).hostname or ""
        order = self._orders.setdefault(delivery.job.key, asyncio.Lock())
        turns_here = self._turns_at.setdefault(host, asyncio.Semaphore(AT_ONCE_PER_HOST))
        turns_of_owner = self._turns_of.setdefault(
            delivery.job.key.owner, asyncio.Semaphore(AT_ONCE_PER_OWNER)
        )
        async with order, turns_here, turns_of_owner, self._turns:
            yield


async def _read_some(answer: httpcore.Response) -> None:
    """Take in a short answer, so that the other side is not cut off while it writes; a long one is left."""
    size_bytes = 0
    async for chunk in answer.aiter_stream():
        size_bytes += len(chunk)
        if size_bytes > ANSWER_BYTES:
            return
