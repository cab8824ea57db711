"""An open-loop load generator: requests leave when they are due, whatever has been answered by then.

`python -m loadtests.generator --rates 1,2,3 --mix 256:60,512:40 --duration 30` offers each rate in turn and
prints a table; `--json` and `--plot` keep it. A latency counts from the moment at which the request was due,
so a server that stalls cannot hide it by holding the generator up (coordinated omission).
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp

from loadtests.outcomes import Load, Outcome
from loadtests.report import as_json, as_table, plot
from loadtests.traffic import Arrival, arrivals, bursty, parse_mix, recorded

TIMEOUT_S = 600.0


async def offer(
    url: str, traffic: Sequence[Arrival], *, body: dict[str, object] | None = None
) -> list[Outcome]:
    """Send every request when it is due, with `body` added to it, and return what became of each."""
    loop = asyncio.get_running_loop()
    timeout = aiohttp.ClientTimeout(TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as client:
        began = loop.time()

        def clock() -> float:
            return loop.time() - began

        async with asyncio.TaskGroup() as group:
            tasks = []
            for arrival in traffic:
                await asyncio.sleep(max(0.0, arrival.at_s - clock()))
                tasks.append(group.create_task(_send(client, arrival, clock, body or {})))
    return [task.result() for task in tasks]


async def _send(
    client: aiohttp.ClientSession, arrival: Arrival, clock: Callable[[], float], body: dict[str, object]
) -> Outcome:
    sent_s = clock()
    request = {
        "prompt": arrival.prompt,
        "width": arrival.width,
        "height": arrival.height,
        "seed": arrival.seed,
        **body,
    }
    try:
        async with client.post("/v1/generate", json=request, headers={"Accept": "image/*"}) as answer:
            content = await answer.read()
    except (aiohttp.ClientError, TimeoutError):
        return Outcome(arrival, sent_s, clock(), 0, 0)
    wait = answer.headers.get("Retry-After")
    return Outcome(
        arrival,
        sent_s,
        clock(),
        answer.status,
        len(content),
        None if wait is None else float(wait),
        stages(answer.headers.get("Server-Timing", "")),
    )


def stages(header: str) -> dict[str, float]:
    """Read the seconds of a `Server-Timing` header: `queue;dur=1.5, text;dur=2`."""
    found = {}
    for part in filter(None, (each.strip() for each in header.split(","))):
        name, *parameters = (each.strip() for each in part.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur":
                found[name] = float(value) / 1000
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Offer each rate, and print and keep what it made of the server."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.generator", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rates", default="1", help="requests a second, one run each: 1,2,3")
    parser.add_argument("--mix", default="256", help="sizes and weights: 256:60,512x384:40")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of arrivals for each rate")
    parser.add_argument("--variation", type=float, default=1.0, help="of the gaps; 1 is Poisson, 3 bursts")
    parser.add_argument("--trace", type=Path, help="CSV with arrived_s, width, height instead of rates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--plot", type=Path, help="PNG to write: latency against offered load")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    try:
        if options.trace:
            runs = [recorded(options.trace, rng)]
        else:
            mix = parse_mix(options.mix)
            times = [
                bursty(float(rate), rng, variation=options.variation) for rate in options.rates.split(",")
            ]
            runs = [arrivals(each, mix, rng, until_s=options.duration) for each in times]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    loads = [Load.of(asyncio.run(offer(options.url, traffic))) for traffic in runs]
    print(as_table(loads))
    if options.json:
        options.json.write_text(as_json(loads))
    if options.plot:
        plot(loads, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
