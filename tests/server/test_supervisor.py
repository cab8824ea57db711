"""One child process: its death is noticed at once, whatever the death looks like, and stopping is quick."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

from server.costs import CostTable, StepKind
from server.generation import ModelInfo
from server.protocol import Ready, Start, Stepped, ToFront, frame
from server.supervisor import MAX_DELAY_S, State, Supervisor

START = Start(
    model="m", device="cpu", dtype="auto", numerics="auto", kernels="auto", quantize="none",
    memory="full", threads=1, max_steps=0, data_dir="/nowhere", calibration_s=0.0,
    conditioning_cache_bytes=1, verify_weights="auto", allow_pickle=False,
    log_format="text", log_level="info",
)  # fmt: skip
MODEL = ModelInfo(
    name="n", digest="d", device="cpu", dtype="float32", numerics="exact",
    quantize="none", guidance_embed=False,
    default_width=1, default_height=1, default_steps=1, max_steps=1, default_sequence_length=1,
)  # fmt: skip
# A worker in a few lines: `end` is its socket; it has read what it was sent first.
PRELUDE = f"""
import os, socket, sys, time
end = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
end.recv(1 << 16)
READY = {frame(Ready(model=MODEL, costs=CostTable()))!r}
STEPPED = {frame(Stepped(kind=StepKind.DENOISE, lane=0, images=1, tokens=1, seconds=1.0))!r}
"""
IDLE = "end.sendall(READY); end.recv(1)"


class World:
    """A supervisor, the states that it went through with their times, and what its worker said."""

    def __init__(self, script: str, hear: Callable[[ToFront], None]) -> None:
        self.changes: list[tuple[float, State]] = []
        self.changed = asyncio.Event()
        self.supervisor = Supervisor(
            START,
            on_message=hear,
            on_change=self._note,
            command=(sys.executable, "-c", PRELUDE + script),
        )

    async def reach(self, state: State, *, times: int = 1) -> float:
        """Wait until `state` was entered so many times; return when it was."""
        async with asyncio.timeout(20):
            while len(found := [when for when, each in self.changes if each is state]) < times:
                self.changed.clear()
                await self.changed.wait()
        return found[times - 1]

    def _note(self) -> None:
        self.changes.append((time.monotonic(), self.supervisor.state))
        self.changed.set()


@asynccontextmanager
async def supervised(
    script: str, hear: Callable[[ToFront], None] = lambda message: None
) -> AsyncIterator[World]:
    world = World(script, hear)
    world.supervisor.start()
    try:
        yield world
    finally:
        await world.supervisor.stop()
        assert world.supervisor.pid is None


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))


async def seconds(work: Awaitable[object]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


def test_what_the_worker_says_is_handed_on() -> None:
    async def story() -> None:
        said: list[ToFront] = []
        async with supervised("end.sendall(READY + STEPPED); end.recv(1)", said.append) as world:
            await world.reach(State.READY)
            while len(said) < 2:
                await asyncio.sleep(0.01)
            assert [type(message) for message in said] == [Ready, Stepped]
        assert [state for _, state in world.changes] == [State.STARTING, State.READY, State.STOPPED]

    run(story)


def test_a_killed_worker_is_noticed_at_once_and_replaced() -> None:
    async def story() -> None:
        async with supervised(IDLE) as world:
            await world.reach(State.READY)
            first, began = world.supervisor.pid, time.monotonic()
            world.supervisor.kill()
            assert await world.reach(State.LOST) - began < 0.5
            await world.reach(State.READY, times=2)
            assert world.supervisor.pid not in (None, first)
            assert (world.supervisor.restarts, world.supervisor.failures) == (1, 0)

    run(story)


def test_a_worker_that_closes_its_end_is_lost_before_its_process_is_gone() -> None:
    async def story() -> None:
        async with supervised("end.sendall(READY); end.close(); time.sleep(60)") as world:
            ready = await world.reach(State.READY)
            assert await world.reach(State.LOST) - ready < 0.5
            assert await world.reach(State.READY, times=2) - ready < 2, "the first one was waited for"

    run(story)


def test_a_worker_that_talks_nonsense_and_stays_is_replaced_at_once() -> None:
    async def story() -> None:
        async with supervised("end.sendall(READY + b'\\0\\0\\0\\x01x'); time.sleep(60)") as world:
            ready = await world.reach(State.READY)
            assert await world.reach(State.READY, times=2) - ready < 2

    run(story)


def test_a_message_that_cannot_be_handled_costs_the_worker_not_the_supervision() -> None:
    def hear(message: ToFront) -> None:
        if isinstance(message, Stepped):
            raise ZeroDivisionError

    async def story() -> None:
        async with supervised("end.sendall(READY + STEPPED); end.recv(1)", hear) as world:
            await world.reach(State.LOST)
            await world.reach(State.READY, times=2)

    run(story)


def test_the_wait_before_a_restart_doubles_and_has_an_end() -> None:
    async def story() -> None:
        async with supervised("sys.exit(1)") as world:
            losses = [await world.reach(State.LOST, times=times) for times in (1, 2, 3, 4, 5)]
            waits = [later - sooner for sooner, later in pairwise(losses)]
            for wait, least in zip(waits, (0.05, 0.1, 0.2, 0.4), strict=True):
                assert least <= wait
        async with supervised("sys.exit(1)") as world:
            world.supervisor.failures = 5000  # 2.0 ** 5000 is no number
            lost = await world.reach(State.LOST)
            await asyncio.sleep(0.2)
            assert world.supervisor.state is State.LOST
            assert time.monotonic() - lost < MAX_DELAY_S
            assert world.supervisor._task is not None
            assert not world.supervisor._task.done()

    run(story)


def test_stopping_is_quick_in_every_state() -> None:
    async def story() -> None:
        async with supervised("time.sleep(60)") as loading:
            while loading.supervisor.pid is None:
                await asyncio.sleep(0.01)
            assert await seconds(loading.supervisor.stop()) < 2
        async with supervised("sys.exit(1)") as failing:
            await failing.reach(State.LOST, times=5)
            assert await seconds(failing.supervisor.stop()) < 1
        async with supervised("end.sendall(READY); time.sleep(60)") as deaf:
            await deaf.reach(State.READY)
            assert await seconds(deaf.supervisor.stop()) < 3
        async with supervised(IDLE) as idle:
            await idle.reach(State.READY)
            assert await seconds(idle.supervisor.stop()) < 1

    run(story)


def test_a_command_that_does_not_exist_is_tried_again() -> None:
    async def story() -> None:
        changes: list[State] = []
        supervisor = Supervisor(
            START,
            on_message=lambda message: None,
            on_change=lambda: changes.append(supervisor.state),
            command=("/nonexistent",),
        )
        supervisor.start()
        while changes.count(State.LOST) < 2:
            await asyncio.sleep(0.01)
        await supervisor.stop()
        assert supervisor.failures == 2

    run(story)
