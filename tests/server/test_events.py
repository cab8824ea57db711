"""What the engine tells of a request, with real child processes: each listener hears of its own pictures."""

import asyncio
from typing import Any

import pytest

from server.errors import GenerationFailed
from server.events import Advanced, Event
from server.generation import Forecast, Image, Preview
from server.reuse import Reuse
from server.roster import Watch
from tests.server.engines import engine_on, request, run

CACHE_BYTES = 1 << 20
SOON = Preview(index=0, step=1, data=b"soon", content_type="image/png")


class Heard(list[tuple[int, Event]]):
    """A listener that keeps what it hears."""

    def __call__(self, number: int, event: Event) -> None:
        self.append((number, event))

    def of(self, number: int) -> list[Event]:
        return [event for about, event in self if about == number]

    def kinds(self, number: int = 0) -> list[type[Any]]:
        return [type(event) for event in self.of(number)]


def test_a_listener_hears_of_queue_steps_previews_and_the_picture() -> None:
    async def story() -> None:
        heard = Heard()
        async with engine_on() as engine:
            result = await engine.submit(request("show", steps=2, previews=1), watch=Watch(listen=heard))
        queued, *rest = heard.of(0)
        assert isinstance(queued, Forecast)
        assert (queued.position, queued.finish_s > 0) == (0, True)
        assert rest == [Advanced(1, 2), SOON, Advanced(2, 2), result.images[0]]

    run(story)


def test_each_picture_has_a_place_of_its_own() -> None:
    async def story() -> None:
        heard = Heard()
        async with engine_on() as engine:
            result = await engine.submit(request("show", steps=2, num_images=3), watch=Watch(listen=heard))
        assert [event.position for _, event in heard if isinstance(event, Forecast)] == [0, 1, 2]
        for number, image in enumerate(result.images):
            assert heard.of(number)[1:] == [Advanced(1, 2), Advanced(2, 2), image]

    run(story)


def test_a_picture_that_is_there_already_is_all_that_is_heard() -> None:
    async def story() -> None:
        heard = Heard()
        async with engine_on(image_cache_bytes=CACHE_BYTES) as engine:
            first = await engine.submit(request("show", steps=2), Reuse.ALLOWED)
            again = request("show", steps=2, previews=1, num_images=2)
            await engine.submit(again, Reuse.ALLOWED, Watch(listen=heard))
        assert heard.of(0) == first.images
        assert heard.kinds(1) == [Forecast, Advanced, Preview, Advanced, Image]

    run(story)


def test_all_who_wait_for_a_run_hear_of_it() -> None:
    async def story() -> None:
        first, second = Heard(), Heard()
        async with engine_on() as engine:
            asked = [
                asyncio.create_task(
                    engine.submit(request("show", steps=2, previews=1), Reuse.ALLOWED, Watch(listen=listener))
                )
                for listener in (first, second)
            ]
            results = await asyncio.gather(*asked)
        assert [result.joined for result in results] == [0, 1]
        assert first.of(0)[1:] == second.of(0)[1:]
        assert first.kinds() == [Forecast, Advanced, Preview, Advanced, Image]

    run(story)


def test_each_hears_of_the_previews_that_it_asked_for() -> None:
    async def story() -> None:
        heard = {asked: Heard() for asked in (3, 1, 0)}
        async with engine_on() as engine:
            requests = [
                engine.submit(
                    request("show", steps=4, previews=asked), Reuse.ALLOWED, Watch(listen=heard[asked])
                )
                for asked in heard
            ]
            results = await asyncio.gather(*requests)
        assert [result.joined for result in results] == [0, 1, 1]
        shown = {
            asked: [(event.index, event.step) for event in each.of(0) if isinstance(event, Preview)]
            for asked, each in heard.items()
        }
        assert shown == {3: [(0, 1), (1, 2)], 1: [(0, 2)], 0: []}

    run(story)


def test_a_failure_is_raised_and_not_told() -> None:
    async def story() -> None:
        heard = Heard()
        async with engine_on() as engine:
            with pytest.raises(GenerationFailed):
                await engine.submit(request("fail"), watch=Watch(listen=heard))
        assert heard.kinds() == [Forecast]

    run(story)
