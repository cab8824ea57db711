"""What becomes of the work of clients that leave: `python -m loadtests.leaving`.

Many clients ask and close their connections before they are answered. Nothing of their work may go on beyond
the step that runs, and the next client must not wait for it.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

from loadtests.generator import offer
from loadtests.outcomes import Load
from loadtests.servers import OURS, Server, running
from loadtests.traffic import Arrival

SIDE = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a server, let clients leave it, and print what those who come after them see."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.leaving", description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args(arguments)
    with running((*OURS, "--max-backlog-s", "3600")) as server:
        alone_s, after_s = leave(server, options.clients)
    print(f"alone: {alone_s:.3f} s; right after {options.clients} clients have left: {after_s:.3f} s")
    return 0


def leave(server: Server, clients: int) -> tuple[float, float]:
    """Return the seconds of a picture alone, and of one that is asked for when everybody has left."""
    alone_s = min(_one(server.url, seed) for seed in range(5))
    asyncio.run(_ask_and_leave(server.url, clients))
    return alone_s, _one(server.url, 99)


def _one(url: str, seed: int) -> float:
    return Load.of(asyncio.run(offer(url, [Arrival(0.0, SIDE, SIDE, "a red circle", seed)]))).p50_s


async def _ask_and_leave(url: str, clients: int) -> None:
    """Connect, send, and close everything once the server has all of it and has begun."""
    host, _, port = url.removeprefix("http://").partition(":")
    connections = []
    for seed in range(clients):
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"prompt": "a cat", "width": SIDE, "height": SIDE, "seed": 1000 + seed}).encode()
        writer.write(
            b"POST /v1/generate HTTP/1.1\r\nHost: leaving\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        connections.append((reader, writer))
    await asyncio.wait_for(connections[0][0].readexactly(1), 60)  # the first picture is there: all are known
    for _, writer in connections:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for _, writer in connections), return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
