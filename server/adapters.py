"""The adapters that are served: which file a name means, and that every worker has it.

The engine tells what workers say and when they come and go; the routes under `/v1/loras` put and remove.
A new adapter is served when every worker that is ready has taken it. A worker that starts loads those that
are served then, and is brought up to date when it is ready.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from server.adapter_files import AdapterFiles
from server.errors import InvalidRequest, NotFound, NotReady, WorkerLost
from server.generation import Adapter, AdapterInfo, GenerationRequest
from server.protocol import AdapterFile, AdapterLoaded, AdapterRefused, DropAdapter, LoadAdapter
from server.supervisor import State, Supervisor

RETRY_SOON_S: Final = 5.0
ANSWER_S: Final = 120.0  # a gigabyte from a slow disk takes a minute

log = structlog.get_logger(__name__)

Answer = AdapterLoaded | AdapterRefused | None  # None: the worker died


class _Load(NamedTuple):
    """What a worker was told to load. A `digest` that is served, or else somebody who awaits the `answer`."""

    digest: str = ""
    answer: "asyncio.Future[Answer] | None" = None


class Adapters:
    """`served` is empty until the first worker is ready. `_has` are the digests that each worker holds.

    `_loads` are what each was told to load and has not answered: it answers one after the other.
    """

    def __init__(self, files: AdapterFiles, *, max_upload_bytes: int = 0) -> None:
        self.files = files
        self.max_upload_bytes = max_upload_bytes
        self.served: tuple[AdapterInfo, ...] = ()
        self._known = False
        self._supervisors: Sequence[Supervisor] = ()
        self._has: dict[int, set[str]] = defaultdict(set)
        self._changing = asyncio.Lock()
        self._loads: dict[int, deque[_Load]] = defaultdict(deque)

    def attach(self, supervisors: Sequence[Supervisor]) -> None:
        """Have these workers load what is served, whenever they start."""
        self._supervisors = supervisors
        self._tell_starts()

    def ready(self, index: int, loaded: Sequence[AdapterInfo]) -> None:
        """A worker has started with these: the first one says what is served, others get what they lack."""
        self._has[index] = {each.digest for each in loaded}
        if self._known:
            self._bring_up_to_date(index)
        else:
            self._known, self.served = True, tuple(loaded)

    def hear(self, index: int, answer: AdapterLoaded | AdapterRefused) -> None:
        """A worker has answered."""
        loads = self._loads[index]
        load = loads.popleft() if loads else _Load()  # of a worker that was given up meanwhile
        if isinstance(answer, AdapterLoaded):
            self._has[index].add(answer.adapter.digest)
        if load.answer is not None and not load.answer.done():
            load.answer.set_result(answer)
            return
        if isinstance(answer, AdapterRefused):
            log.error("adapter_missing", worker=index, adapter=answer.name, reason=answer.reason)
        self._drop_unserved(index)  # what was put may have taken too long, what lacked may be removed

    def lost(self, index: int) -> None:
        """A worker died, and answers no more."""
        self._has[index].clear()
        for load in self._loads.pop(index, ()):
            if load.answer is not None and not load.answer.done():
                load.answer.set_result(None)

    def identified(self, request: GenerationRequest) -> GenerationRequest:
        """Return a request with what its names mean now; raises `InvalidRequest` for one that is gone."""
        return msgspec.structs.replace(
            request, adapters=identified(request.adapters, self.served, field="loras")
        )

    async def put(self, name: str, upload: Path) -> AdapterInfo:
        """Serve a whole upload under a name; what had the name is finished with, and then forgotten.

        Raises `InvalidRequest` with the workers' reason for what is no adapter, `NotReady`, `WorkerLost` or
        `StorageUnavailable`; then nothing has changed.
        """
        async with self._changing:
            try:
                info = await self._loaded_everywhere(AdapterFile(name=name, path=str(upload)))
                self.files.keep(upload, name)
                self.served = (*(each for each in self.served if each.name != name), info)
            finally:
                self._bring_all_up_to_date()
        return info

    async def remove(self, name: str) -> None:
        """Serve an adapter no longer, or remove one that was put and that the workers left out.

        Raises `NotFound`, `InvalidRequest`, `NotReady` or `StorageUnavailable`.
        """
        async with self._changing:
            if not self._known:
                raise NotReady("the model is still being loaded", retry_after_s=RETRY_SOON_S)
            self.check_free(name)
            if not self.files.is_put(name):
                raise NotFound(_unknown(name, self.served, field="name"), field="name")
            self.files.remove(name)
            self.served = tuple(each for each in self.served if each.name != name)
            self._bring_all_up_to_date()

    def check_free(self, name: str) -> None:
        """Raise `InvalidRequest` for a name that the settings have taken."""
        if self.files.is_given(name):
            message = f"name is {name!a}, which was given with --lora; allowed: another name"
            raise InvalidRequest(message, field="name")

    async def _loaded_everywhere(self, file: AdapterFile) -> AdapterInfo:
        ready = [index for index, each in enumerate(self._supervisors) if each.state is State.READY]
        if not ready:
            raise NotReady("no worker is ready to take an adapter", retry_after_s=RETRY_SOON_S)
        try:
            async with asyncio.timeout(ANSWER_S):
                answers = await asyncio.gather(*(self._ask(index, file) for index in ready))
        except TimeoutError:
            raise NotReady("the workers did not take the adapter in time") from None
        if refused := [each.reason for each in answers if isinstance(each, AdapterRefused)]:
            raise InvalidRequest(f"this is no adapter that can be served: {refused[0]}", field="body")
        if loaded := [each.adapter for each in answers if isinstance(each, AdapterLoaded)]:
            return loaded[0]
        raise WorkerLost("the workers died while they took the adapter", retry_after_s=RETRY_SOON_S)

    def _ask(self, index: int, file: AdapterFile) -> "asyncio.Future[Answer]":
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._load(index, file, _Load(answer=answer))
        return answer

    def _load(self, index: int, file: AdapterFile, load: _Load) -> None:
        self._loads[index].append(load)
        self._supervisors[index].send(LoadAdapter(file=file))

    def _bring_all_up_to_date(self) -> None:
        self._tell_starts()
        for index, each in enumerate(self._supervisors):
            if each.state is State.READY:
                self._bring_up_to_date(index)

    def _bring_up_to_date(self, index: int) -> None:
        """Have a worker load what it lacks, and drop what no name means."""
        files = {file.name: file for file in self.files.all()}
        wanted = {each.digest: each.name for each in self.served}
        self._drop_unserved(index)
        for digest in wanted.keys() - self._has[index] - {load.digest for load in self._loads[index]}:
            self._load(index, files[wanted[digest]], _Load(digest=digest))

    def _drop_unserved(self, index: int) -> None:
        wanted = {each.digest for each in self.served}
        for digest in self._has[index] - wanted:
            self._supervisors[index].send(DropAdapter(digest=digest))
        self._has[index] &= wanted

    def _tell_starts(self) -> None:
        for each in self._supervisors:
            each.start_message = msgspec.structs.replace(each.start_message, adapters=self.files.all())


def find(name: str, served: Sequence[AdapterInfo], *, field: str) -> AdapterInfo:
    """Return what a name means; raises `InvalidRequest` for one that means nothing."""
    if found := next((each for each in served if each.name == name), None):
        return found
    raise InvalidRequest(_unknown(name, served, field=field), field=field)


def _unknown(name: str, served: Sequence[AdapterInfo], *, field: str) -> str:
    known = ", ".join(each.name for each in served) or "none"
    return f"{field} is {name[:100]!a}, which is no adapter of this server; there are: {known}"


def identified(asked: Sequence[Adapter], served: Sequence[AdapterInfo], *, field: str) -> tuple[Adapter, ...]:
    """Return the adapters with the digests of the files that they mean now; raises `InvalidRequest`."""
    return tuple(
        msgspec.structs.replace(each, digest=find(each.name, served, field=field).digest) for each in asked
    )
