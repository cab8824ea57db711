"""The comparison with other servers: everybody gets the same traffic, and a peer serves the same pictures."""

import asyncio
from pathlib import Path

from loadtests.generator import offer
from loadtests.outcomes import Load
from loadtests.peers.__main__ import KINDS, OURS, SERVERS, at_once, at_rate, best_peer, row
from loadtests.report import keep
from loadtests.servers import running
from loadtests.traffic import Arrival
from server.settings import EMBEDDED_MODEL


def load(answered: float) -> Load:
    return Load(
        offered=1.0,
        answered=answered,
        requests=10,
        statuses={200: 9, 500: 1},
        p50_s=1.0,
        p95_s=2.0,
        p99_s=3.0,
        latest_start_s=0.0,
        stages_s={},
    )


def test_everybody_gets_the_same_pictures_at_any_rate() -> None:
    for kind in KINDS:
        slow, fast, burst = at_rate(kind, 1.0, 20, 5), at_rate(kind, 4.0, 20, 5), at_once(kind, 20, 5)
        pictures = [(arrival.width, arrival.height, arrival.seed) for arrival in slow]
        for traffic in (slow, fast, burst):
            assert len(traffic) == 20
            assert [(arrival.width, arrival.height, arrival.seed) for arrival in traffic] == pictures
        assert {arrival.at_s for arrival in burst} == {0.0}


def test_the_rate_is_that_of_the_best_peer() -> None:
    capacities = {("mixed", OURS): load(9.0), ("mixed", "ray"): load(2.0), ("mixed", "fastapi"): load(3.0)}
    assert best_peer(capacities, "mixed") == 3.0
    assert best_peer({("mixed", OURS): load(9.0)}, "mixed") == 9.0


def test_rows_are_added(tmp_path: Path) -> None:
    lines = [row(KINDS[0], "fastapi", load(3.0), load(1.0))]
    keep(lines, tmp_path / "peers.csv")
    keep(lines, tmp_path / "peers.csv")
    head, first, second = (tmp_path / "peers.csv").read_text().splitlines()
    assert head.startswith("traffic,server,capacity,")
    assert first == second
    assert "mixed,fastapi,3.0,1.0,1.0,2.0,3.0,20,2,torch" in first


def test_a_peer_answers_over_the_same_route() -> None:
    with running((*SERVERS["fastapi"], str(EMBEDDED_MODEL))) as server:
        (outcome,) = asyncio.run(
            offer(server.url, [Arrival(0.0, 256, 256, "a red circle", 1)], body={"num_inference_steps": 1})
        )
    assert outcome.status == 200
    assert outcome.size_bytes > 1000
