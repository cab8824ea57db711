"""One answer per key: for a day, within a bound, made once, and only failures may be made again."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from server.errors import GenerationFailed, KeyReused
from server.generation import GenerationResult, Image, Timings
from server.idempotency import LIFETIME_S, Answers
from server.lru import ENTRY_BYTES
from server.metrics import Metrics
from tests.server.test_metrics import samples


class World:
    """Answers on a clock that is moved by hand; `made` counts what was made."""

    def __init__(self, limit_bytes: int = 1 << 20) -> None:
        self.now_s = 100.0
        self.made = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.metrics = Metrics()
        self.answers = Answers(limit_bytes, metrics=self.metrics, clock=lambda: self.now_s)

    async def make(self) -> GenerationResult:
        self.made += 1
        name = f"answer {self.made}"
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        image = Image(
            data=bytes(1000), content_type="image/png", width=1, height=1, seed=1, timings=Timings()
        )
        return GenerationResult(
            id=name, model="m", steps=4, run_steps=4, images=[image], timings=Timings(), created=self.made
        )

    async def ask(self, key: str = "k", fingerprint: bytes = b"f") -> tuple[str, bool]:
        answer = await self.answers.once(key, fingerprint, self.make)
        return answer.result.id, answer.replayed


def story(tell: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(tell(), 10))  # type: ignore[arg-type]


def test_an_answer_is_kept_for_a_day() -> None:
    async def tell() -> None:
        world = World()
        assert await world.ask() == ("answer 1", False)
        world.now_s += LIFETIME_S - 1
        assert await world.ask() == ("answer 1", True)
        world.now_s += 1
        assert await world.ask() == ("answer 2", False)
        assert await world.ask("other") == ("answer 3", False)
        assert samples(world.metrics)["flux_idempotent_replays_total",] == 1

    story(tell)


def test_an_expired_key_may_be_used_for_something_else() -> None:
    async def tell() -> None:
        world = World()
        await world.ask()
        with pytest.raises(KeyReused):
            await world.ask(fingerprint=b"g")
        world.now_s += LIFETIME_S
        assert await world.ask(fingerprint=b"g") == ("answer 2", False)

    story(tell)


def test_answers_stay_within_their_bound() -> None:
    async def tell() -> None:
        world = World(limit_bytes=2 * (ENTRY_BYTES + 1000))
        for key in ("a", "b", "c"):
            await world.ask(key)
        assert await world.ask("c") == ("answer 3", True)
        assert await world.ask("b") == ("answer 2", True)
        assert await world.ask("a") == ("answer 4", False)

    story(tell)


def test_a_bound_of_nothing_still_joins_those_who_come_meanwhile() -> None:
    async def tell() -> None:
        world = World(limit_bytes=0)
        together = await asyncio.gather(world.ask(), world.ask())
        assert together == [("answer 1", False), ("answer 1", True)]
        assert await world.ask() == ("answer 2", False)

    story(tell)


def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    async def tell() -> None:
        world = World()
        world.error = GenerationFailed("no")
        together = await asyncio.gather(*(world.ask() for _ in range(3)), return_exceptions=True)
        assert together == [world.error] * 3
        world.error = None
        assert await world.ask() == ("answer 2", False)

    story(tell)


def test_a_hundred_rounds_of_company_and_leaving_make_one_answer_each() -> None:
    async def tell() -> None:
        world = World()
        for round_number in range(100):
            key = str(round_number)
            world.gate.clear()
            tasks = [asyncio.create_task(world.ask(key)) for _ in range(50)]
            await asyncio.sleep(0)
            leavers = tasks[round_number % 50 :: 7]
            for task in leavers:
                task.cancel()
            await asyncio.wait(leavers)
            world.gate.set()
            rest = await asyncio.gather(*(task for task in tasks if task not in leavers))
            assert {name for name, _ in rest} == {f"answer {round_number + 1}"}
        assert world.made == 100
        assert not world.answers._running

    story(tell)


def test_the_last_to_leave_ends_the_making() -> None:
    async def tell() -> None:
        world = World()
        world.gate.clear()
        tasks = [asyncio.create_task(world.ask()) for _ in range(3)]
        await asyncio.sleep(0)
        (running,) = world.answers._running.values()
        for task in tasks:
            assert not running.work.done()
            task.cancel()
            await asyncio.wait([task])
        assert running.work.cancelled()
        assert not world.answers._running
        world.gate.set()
        assert await world.ask() == ("answer 2", False)

    story(tell)
