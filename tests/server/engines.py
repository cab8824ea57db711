"""The real engine on workers without a model, and what tests ask of it."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from server.adapter_files import AdapterFiles
from server.adapters import Adapters
from server.engine import Engine
from server.errors import (
    ServerError,
)
from server.generation import GenerationRequest
from server.metrics import Metrics
from server.protocol import Start

COMMAND = (sys.executable, "-m", "tests.server.fake_worker")


NAMES = iter(range(10**9))


def start(model: str = "fake", device: str = "auto") -> Start:
    return Start(
        model=model,
        device=device,
        dtype="auto",
        numerics="auto",
        kernels="auto",
        quantize="none",
        memory="full",
        threads=1,
        max_steps=0,
        data_dir="/nowhere",
        calibration_s=0.0,
        conditioning_cache_bytes=0,
        verify_weights="never",
        allow_pickle=False,
        log_format="text",
        log_level="info",
    )


@asynccontextmanager
async def engine_on(
    *models: str,
    max_backlog_s: float = 100.0,
    default_deadline_s: float | None = None,
    hang_s: float = 60.0,
    image_cache_bytes: int = 0,
    ready: bool = True,
    charge: Callable[[str, float], None] = lambda name, device_s: None,
    adapters: Adapters | None = None,
) -> AsyncIterator[Engine]:
    engine = Engine(
        [start(model) for model in models or ("fake",)],
        metrics=Metrics(),
        adapters=adapters or Adapters(AdapterFiles(Path("/dev/null/adapters"), {})),
        max_backlog_s=max_backlog_s,
        default_deadline_s=default_deadline_s,
        auto_steps_backlog_s=(2.0, 4.0, 6.0),
        hang_s=hang_s,
        image_cache_bytes=image_cache_bytes,
        charge=charge,
        command=COMMAND,
    )
    await engine.start()
    try:
        if ready:
            async with asyncio.timeout(20):
                await engine.wait_ready()
        yield engine
    finally:
        await engine.stop(0)


def request(prompt: str = "a", **changes: Any) -> GenerationRequest:
    fields = {"id": f"request-{next(NAMES)}", "prompt": prompt, "width": 256, "height": 256, "steps": 4}
    return GenerationRequest(**(fields | {"seed": 1, "max_sequence_length": 64} | changes))


async def ask(engine: Engine, wanted: GenerationRequest) -> list[str] | str:
    """Return the pictures as text, or the code of the error; checks that they are the asked ones."""
    try:
        async with asyncio.timeout(30):
            result = await engine.submit(wanted)
    except ServerError as error:
        return error.code
    for index, image in enumerate(result.images):
        name = (
            re.escape(wanted.id) + rf"#\d+/{index} seed {wanted.seed + index} {wanted.width}x{wanted.height}"
        )
        assert re.fullmatch(name, image.data.decode())
    assert len(result.images) == wanted.num_images
    return "ok"


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def worker_pid(engine: Engine) -> int:
    pid = engine._workers[0].supervisor.pid
    assert pid is not None
    return pid
