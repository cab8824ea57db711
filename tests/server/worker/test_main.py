"""How a worker process ends, but for what its loop does."""

import os
import socket

import pytest

from server.protocol import frame
from server.worker.__main__ import _receive
from server.worker.connection import Connection
from tests.server.worker.pipelines import running, submitted


def test_a_worker_that_cannot_take_a_message_in_ends_and_does_not_stay_deaf(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    ours, theirs = socket.socketpair()
    with ours, theirs, running(paused=True) as world:
        ours.sendall(2 * frame(submitted("twice")))
        _receive(Connection(theirs), world.loop)
    assert ended == [0]
