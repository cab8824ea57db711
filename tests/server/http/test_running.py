"""What callers have running: each sees their own, and nobody's id can be another's."""

import asyncio

import pytest

from server.errors import Cancelled
from server.generation import GenerationRequest, GenerationResult
from server.http.body import RequestBody
from server.http.running import Running

REQUEST = GenerationRequest(
    id="chosen-by-a-client", prompt="a", width=256, height=256, steps=4, seed=1, max_sequence_length=64
)


def test_calls_are_found_by_their_caller_while_they_run() -> None:
    running = Running()
    with running.call("one", "a", REQUEST, RequestBody(), now=1.0) as first:
        with running.call("one", "b", REQUEST, RequestBody(), now=2.0) as second:
            assert running.of("one") == [first, second]
            assert running.of("two") == []
            assert running.find("two", "a") is None
        assert running.of("one") == [first]
        assert running.find("one", "a") is first
    assert running.of("one") == []
    assert not running._calls, "callers who left take no memory"


def test_two_calls_with_the_same_id_are_told_apart() -> None:
    running = Running()
    with (
        running.call("one", "a", REQUEST, RequestBody(), now=1.0) as first,
        running.call("two", "a", REQUEST, RequestBody(), now=1.0) as second,
    ):
        assert first.request.id != second.request.id
        assert first.request.id.startswith(REQUEST.id)


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_stopped_ends_however_early_that_was(begun: bool) -> None:
    async def work() -> GenerationResult:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def story() -> None:
        with Running().call("one", "a", REQUEST, RequestBody(), now=1.0) as call:
            if not begun:
                call.stop()
            running = asyncio.create_task(call.run(work()))
            await asyncio.sleep(0)
            call.stop()
            with pytest.raises(Cancelled):
                await running

    asyncio.run(story())


def test_a_handler_that_is_cancelled_takes_its_work_along() -> None:
    ended = []

    async def work() -> GenerationResult:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")
        raise AssertionError("nobody sets it")

    async def story() -> None:
        with Running().call("one", "a", REQUEST, RequestBody(), now=1.0) as call:
            running = asyncio.create_task(call.run(work()))
            await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert ended == ["work"]

    asyncio.run(story())
