"""The open loop: what is due leaves, whatever the server does, and latency counts from then."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from loadtests.generator import offer, stages
from loadtests.outcomes import Load, Outcome, quantile
from loadtests.report import as_json, as_table
from loadtests.traffic import Arrival

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nServer-Timing: queue;dur=20, denoise;dur=1500\r\n\r\nPNG"
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nRetry-After: 7\r\n\r\n"


@asynccontextmanager
async def serving(answer: Callable[[dict[str, object]], object]) -> AsyncIterator[str]:
    """A server on the loopback that answers each JSON body by what `answer` returns or promises."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                result = answer(json.loads(await reader.readexactly(length)))
                data = await result if isinstance(result, asyncio.Future) else result
                if data is None:
                    break
                assert isinstance(data, bytes)
                writer.write(data)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def traffic(*times: float) -> list[Arrival]:
    return [Arrival(at_s, 256, 512, "a cat", seed) for seed, at_s in enumerate(times)]


def test_a_stalled_server_holds_nothing_up_and_hides_nothing() -> None:
    async def run() -> list[Outcome]:
        everybody = asyncio.get_running_loop().create_future()
        asked = 0

        def answer(body: dict[str, object]) -> object:
            nonlocal asked
            asked += 1
            if asked == 3:  # all have been sent although none was answered
                everybody.set_result(ANSWER)
            return everybody

        async with serving(answer) as url:
            return await offer(url, traffic(0.0, 0.1, 0.2))

    outcomes = asyncio.run(run())
    assert [outcome.status for outcome in outcomes] == [200] * 3
    assert outcomes[0].latency_s >= 0.2  # until the last one was due
    assert outcomes[0].latency_s > outcomes[2].latency_s


def test_every_request_says_what_it_wants() -> None:
    bodies: list[dict[str, object]] = []

    def answer(body: dict[str, object]) -> bytes:
        bodies.append(body)
        return ANSWER

    async def run() -> list[Outcome]:
        async with serving(answer) as url:
            return await offer(url, traffic(0.0), body={"num_inference_steps": 2})

    (outcome,) = asyncio.run(run())
    assert bodies == [{"prompt": "a cat", "width": 256, "height": 512, "seed": 0, "num_inference_steps": 2}]
    assert outcome.stages == {"queue": 0.02, "denoise": 1.5}
    assert outcome.size_bytes == 3


def test_refusals_and_broken_connections_are_counted_and_not_timed() -> None:
    answers = iter([REFUSAL, None, ANSWER])

    async def run() -> list[Outcome]:
        async with serving(lambda body: next(answers)) as url:
            return await offer(url, traffic(0.0, 0.2, 0.4))

    outcomes = asyncio.run(run())
    assert outcomes[0].retry_after_s == 7
    load = Load.of(outcomes)
    assert load.statuses == {0: 1, 200: 1, 429: 1}
    assert load.p50_s == load.p99_s == outcomes[2].latency_s


def test_a_run_is_summed_up() -> None:
    outcomes = [
        Outcome(arrival, arrival.at_s, arrival.at_s + number, 200, 3, stages={"queue": number})
        for number, arrival in enumerate(traffic(0.0, 1.0, 2.0, 4.0), start=1)
    ]
    load = Load.of(outcomes)
    assert (load.offered, load.answered) == (1.0, 0.5)
    assert (load.p50_s, load.stages_s) == (2.5, {"queue": 2.5})
    assert "200:4" in as_table([load])
    assert json.loads(as_json([load]))["runs"][0]["p50_s"] == 2.5


def test_an_empty_run_is_refused() -> None:
    with pytest.raises(ValueError, match="there was no request"):
        Load.of([])


def test_quantiles_are_interpolated() -> None:
    assert quantile([3.0], 99) == 3.0
    assert quantile([float(i) for i in range(101)], 95) == pytest.approx(95)


def test_server_timing_is_read_with_and_without_durations() -> None:
    assert stages('queue;dur=1.5, cache;desc="hit", text;desc=x;dur=2') == {"queue": 0.0015, "text": 0.002}
    assert stages("") == {}
