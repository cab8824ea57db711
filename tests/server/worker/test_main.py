"""How a worker process ends, but for what its loop does."""

import os
import socket
from pathlib import Path

import pytest

from model.checkpoint import CheckpointError
from model.lora import Adapter as Loaded
from server.protocol import AdapterFile, frame
from server.worker.__main__ import _receive, _served
from server.worker.adapters import Adapters
from server.worker.connection import Connection
from tests.server.worker.pipelines import fake_adapter, running, submitted


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


def test_what_was_put_and_does_not_fit_the_model_keeps_no_worker_from_its_start() -> None:
    def load(path: Path, limit_bytes: int) -> Loaded:
        if path.name == "bad":
            raise CheckpointError(f"{path}: is for another model")
        return fake_adapter(path, limit_bytes)

    files = [AdapterFile(name=name, path=f"/{name}") for name in ("bad", "good")]
    assert [each.name for each in _served(Adapters(load, 1 << 20), files)] == ["good"]
    with pytest.raises(CheckpointError, match="another model"):
        list(_served(Adapters(load, 1 << 20), [AdapterFile(name="bad", path="/bad", required=True)]))
