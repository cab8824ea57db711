"""The front end alone: both servers answer the same bytes, and are asked as hard as stated."""

import asyncio

import pytest

from loadtests.front import SERVERS, ask_in_turn, ask_together, running


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_answers_in_turn_and_together(name: str) -> None:
    with running(name) as port:
        assert len(asyncio.run(ask_in_turn(port, 3))) == 3
        rate, p99_s = asyncio.run(ask_together(port, 2, 0.2))
    assert rate > 0
    assert p99_s > 0
