"""In whose name a request runs, and how urgent it may be."""

from itertools import product

import msgspec
import pytest

from server.caller import Caller
from server.errors import Forbidden, RateLimited
from server.generation import GenerationRequest, Priority
from server.keys import Key
from server.quotas import Quotas

REQUEST = GenerationRequest(id="a", prompt="", width=256, height=256, steps=4, seed=0, max_sequence_length=64)
HIGH, NORMAL, LOW = Priority


def caller(priority: Priority = NORMAL, concurrent_requests: int | None = None) -> Caller:
    hash_ = "sha256:" + "0" * 64
    key = Key(name="alice", hash=hash_, priority=priority, concurrent_requests=concurrent_requests)
    return Caller(key, Quotas())


def test_without_keys_a_request_stays_as_it_is() -> None:
    for priority in (None, *Priority):
        request = msgspec.structs.replace(REQUEST, priority=priority)
        assert Caller(None, Quotas()).sign(request) == request
    assert Caller(None, Quotas()).name == ""


@pytest.mark.parametrize("priority", Priority)
def test_who_asks_for_no_class_gets_that_of_the_key(priority: Priority) -> None:
    signed = caller(priority).sign(REQUEST)
    assert signed == msgspec.structs.replace(REQUEST, key="alice", priority=priority)


@pytest.mark.parametrize(("own", "asked"), list(product(Priority, Priority)))
def test_no_request_is_more_urgent_than_its_key(own: Priority, asked: Priority) -> None:
    request = msgspec.structs.replace(REQUEST, priority=asked)
    if (own, asked) in {(NORMAL, HIGH), (LOW, HIGH), (LOW, NORMAL)}:
        with pytest.raises(
            Forbidden, match=f'priority is "{asked}"; allowed for this key: "{own}"'
        ) as caught:
            caller(own).sign(request)
        assert caught.value.field == "priority"
    else:
        assert caller(own).sign(request).priority is asked


def test_every_picture_carries_the_name() -> None:
    request = caller(LOW).sign(msgspec.structs.replace(REQUEST, num_images=2))
    assert [(image.key, image.priority) for image in request.images()] == [("alice", LOW)] * 2


def test_a_request_counts_while_it_lasts_however_it_ends() -> None:
    limited = caller(concurrent_requests=1)

    def fail() -> None:
        with limited.entering():
            with pytest.raises(RateLimited), limited.entering():
                pass
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fail()
