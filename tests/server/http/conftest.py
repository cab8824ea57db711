"""One edge for all tests of this folder that leave its engine as they found it."""

from collections.abc import Iterator

import httpx
import pytest

from tests.server.http.fake_engine import FakeEngine, serving


@pytest.fixture(scope="session")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="session")
def url(engine: FakeEngine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as made:
        yield made
