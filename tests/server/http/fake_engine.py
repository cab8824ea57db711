"""An engine without workers, behind the real application on a real socket: what the HTTP edge is tested with.

What it does is asked for in the prompt: the name of an error of `FAILURES` raises it, `then` and such a name
raises it after a step, `wait` never ends, `hold` ends when it is released.
"""

import asyncio
import dataclasses
import io
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
from PIL import Image as Pillow

from server.adapter_files import AdapterFiles
from server.adapters import Adapters
from server.app import Edge, assemble, leniencies, open_adapters, open_jobs, sources_of
from server.engine import Engine
from server.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    NotReady,
    OutOfMemory,
    Overloaded,
    ServerError,
    WorkerLost,
)
from server.events import Advanced
from server.generation import (
    AdapterInfo,
    Forecast,
    GenerationRequest,
    GenerationResult,
    Image,
    ImageRequest,
    ModelInfo,
    Preview,
    Priority,
    Timings,
    preview_steps,
)
from server.http.auth import Door
from server.http.connection import Connection
from server.idempotency import Answers
from server.metrics import Metrics
from server.protocol import AdapterFile
from server.reuse import Reuse
from server.roster import UNWATCHED, Progress, Watch
from server.settings import Settings
from server.stats import EngineStats, QueueStats, ServerState, WorkerStats
from server.supervisor import State
from tests.server.models import MODEL

FAILURES: dict[str, Exception] = {
    "overloaded": Overloaded("the backlog is 31.0 s", retry_after_s=7.2),
    "not_ready": NotReady("restarting", retry_after_s=2),
    "worker_lost": WorkerLost("died twice", retry_after_s=1),
    "deadline_exceeded": DeadlineExceeded("not finished in time"),
    "generation_failed": GenerationFailed("the picture holds NaN"),
    "out_of_memory": OutOfMemory("the device has too little memory for a picture of 256x256"),
    "internal_error": ServerError("something"),
    "fault": RuntimeError("secret of /home/host"),
}
REFUSED = ("overloaded", "not_ready")  # at the door; the others fail once they are let in
FORECAST = Forecast(position=3, finish_s=0.0125)
STATS = EngineStats(
    ServerState.READY,
    QueueStats(
        backlog_s=2.5,
        limit_s=30.0,
        waiting={Priority.HIGH: 0, Priority.NORMAL: 2, Priority.LOW: 1},
        running={Priority.HIGH: 1, Priority.NORMAL: 0, Priority.LOW: 0},
        predicted_s=1.25,
        auto_steps=3,
    ),
    [WorkerStats(State.READY, "cpu", backlog_s=2.5, in_hand=4, sizes=["256x256", "512x256"], restarts=1)],
)
MAX_UPLOAD_BYTES = 4 << 20
PREVIEW = b"how it may look"
TIMINGS = Timings(queue_s=0.001, text_s=0.002, denoise_s=0.003, decode_s=0.004, encode_s=0.005, total_s=0.015)


class FakeAdapters(Adapters):
    """Real files and no workers: `refuse` is refused, and of what else an upload says that is its digest."""

    def __init__(self) -> None:
        super().__init__(AdapterFiles(Path("/dev/null"), {}), max_upload_bytes=MAX_UPLOAD_BYTES)
        self.ready(0, ())

    async def _loaded_everywhere(self, file: AdapterFile) -> AdapterInfo:
        text = Path(file.path).read_bytes().decode(errors="replace")
        if text == "refuse":
            raise InvalidRequest("this is no adapter that can be served: it said so", field="body")
        return AdapterInfo(name=file.name, digest=text, size_bytes=len(text))


@dataclass
class FakeEngine:
    """Answers at once; `requests`, `reuses` and `cancelled` are what it was asked for, in order.

    A picture that is finished or being made is the real engine's affair; here `found` says of how many
    pictures of an answer that is so.
    """

    model_info: ModelInfo | None = MODEL
    ready: bool = True
    auto_steps: int = 3
    found: tuple[int, int] = (0, 0)
    device_s: float = 0.0
    charge: Callable[[str, float], None] = Door().charge
    requests: list[GenerationRequest] = field(default_factory=list)
    reuses: list[Reuse] = field(default_factory=list)
    cancelled: list[GenerationRequest] = field(default_factory=list)
    waiting_for_model: int = 0
    held: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    adapters: FakeAdapters = field(default_factory=FakeAdapters)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def model(self) -> ModelInfo:
        if self.model_info is None:
            raise NotReady("the model is still being loaded", retry_after_s=5)
        return msgspec.structs.replace(self.model_info, adapters=self.adapters.served)

    async def start(self) -> None: ...

    def stats(self) -> EngineStats:
        return STATS

    async def wait_ready(self) -> None:
        self.waiting_for_model += 1
        while not self.ready:
            await asyncio.sleep(0.005)

    def steps_for_auto(self) -> int:
        return min(self.auto_steps, self.model.max_steps)

    async def submit(
        self, request: GenerationRequest, reuse: Reuse, watch: Watch = UNWATCHED
    ) -> GenerationResult:
        self.requests.append(request)
        self.reuses.append(reuse)
        if request.prompt not in REFUSED:
            watch.admitted()
        while request.prompt == "hold" and not self.released.is_set():
            await asyncio.sleep(0.005)
        if error := FAILURES.get(request.prompt):
            raise error
        for number in range(request.num_images):
            watch.listen(number, Forecast(position=number, finish_s=0.5))
            watch.listen(number, Advanced(step=1, steps=request.steps))
        if error := FAILURES.get(request.prompt.removeprefix("then ")):
            raise error
        if request.prompt == "wait":
            self.held[request.id] = asyncio.get_running_loop().create_future()
            try:
                await self.held[request.id]
            finally:
                self.cancelled.append(request)
        self.charge(request.key, self.device_s)
        cached, joined = self.found
        images = [picture(image) for image in request.images()]
        for number, image in enumerate(images):
            for index, step in enumerate(preview_steps(request.run_steps, request.previews)):
                watch.listen(
                    number, Preview(index=index, step=step, data=PREVIEW, content_type=image.content_type)
                )
            watch.listen(number, image)
        return GenerationResult(
            id=request.id,
            model=self.model.name,
            steps=request.steps,
            run_steps=request.run_steps,
            images=images,
            timings=TIMINGS,
            created=int(time.time()),
            cached=cached,
            joined=joined,
            forecast=None if cached == request.num_images else FORECAST,
        )

    def progress(self, request_id: str) -> Progress:
        """Pictures that `wait` are all half way."""
        (request,) = (each for each in self.requests if each.id == request_id)
        steps = request.num_images * request.steps
        return Progress(pictures=request.num_images, steps_done=steps // 2, steps=steps)

    def last(self) -> GenerationRequest:
        """Return the newest request without its id, which is new every time."""
        return msgspec.structs.replace(self.requests[-1], id="")


def picture(image: ImageRequest) -> Image:
    """A plain picture whose colour tells its seed."""
    file = io.BytesIO()
    colour = (image.seed % 256, image.seed // 256 % 256, image.steps)
    Pillow.new("RGB", (image.width, image.height), colour).save(file, image.image_format)
    return Image(
        data=file.getvalue(),
        content_type=f"image/{image.image_format}",
        width=image.width,
        height=image.height,
        seed=image.seed,
        timings=TIMINGS,
    )


@contextmanager
def serving(engine: FakeEngine, edge: Edge | None = None, **settings: Any) -> Iterator[str]:
    """Serve the real application around `engine` from a thread; yields its address."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _serving(engine, edge, Settings(data_dir=Path(folder), **settings)) as address,
    ):
        yield address


@contextmanager
def _serving(engine: FakeEngine, edge: Edge | None, settings: Settings) -> Iterator[str]:
    metrics = Metrics()
    answers = Answers(1 << 20, metrics=metrics)
    edge = dataclasses.replace(edge or Edge(), leniency=leniencies(settings))
    engine.charge = edge.door.charge
    jobs, outputs = open_jobs(settings, cast(Engine, engine), metrics, edge.door.quotas)
    engine.adapters.files = open_adapters(settings).files
    app = assemble(cast(Engine, engine), metrics, answers, jobs, outputs, sources_of(settings, outputs), edge)
    config = uvicorn.Config(app, port=0, http=Connection, ws="none", server_header=False, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
