"""The price of previews is taken from answers that are whole."""

import asyncio
from pathlib import Path

import pytest

from loadtests.previews import compare
from loadtests.report import keep
from tests.server.http.fake_engine import FakeEngine, serving


def test_requests_with_and_without_previews_take_turns(tmp_path: Path) -> None:
    engine = FakeEngine()
    with serving(engine) as url:
        row = asyncio.run(compare(url, side=256, clients=2, rounds=3))
    assert [request.previews for request in engine.requests].count(3) == 2 * 5 == len(engine.requests) / 2
    assert (row.clients, row.rounds, row.shown) == (2, 3, 1.0)
    keep([row], tmp_path / "rows.csv")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2


def test_an_answer_that_is_no_picture_is_no_measurement() -> None:
    engine = FakeEngine(model_info=None)
    with serving(engine) as url, pytest.raises(RuntimeError):
        asyncio.run(compare(url, side=256, clients=1, rounds=1))
