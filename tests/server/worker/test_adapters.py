"""Adapters on a worker: loaded between pictures, found by their digests, dropped when nobody needs them."""

import threading
import weakref
from pathlib import Path

import pytest
import torch

from model.checkpoint import CheckpointError
from model.lora import Adapter as Loaded
from server.generation import Adapter, AdapterInfo
from server.protocol import (
    AdapterFile,
    AdapterLoaded,
    AdapterRefused,
    Done,
    DropAdapter,
    Failed,
    LoadAdapter,
    Submit,
)
from server.worker import adapters
from server.worker.adapters import Adapters
from tests.server.worker.pipelines import FakePipeline, fake_adapter, hear, running, submitted

FILE = AdapterFile(name="style", path="/host/secret/d1")
LOADED = AdapterLoaded(adapter=AdapterInfo(name="style", digest="d1", size_bytes=1))


def with_adapter(name: str, digest: str = "d1") -> Submit:
    return submitted(name, adapters=(Adapter(name="style", scale=0.5, digest=digest),))


def test_what_is_submitted_after_a_load_finds_it_and_before_does_not() -> None:
    messages = [with_adapter("early"), LoadAdapter(file=FILE), with_adapter("late")]
    refused, loaded, *rest = hear(FakePipeline(), messages)
    reason = "the adapter 'style' was removed or replaced meanwhile"
    assert refused == Failed(id="early/0", code="generation_failed", message=reason)
    assert loaded == LOADED
    assert isinstance(rest[-1], Done)


def test_a_picture_keeps_an_adapter_that_is_dropped_after_it_came() -> None:
    pipeline = FakePipeline()
    messages = [
        LoadAdapter(file=FILE),
        with_adapter("first"),
        DropAdapter(digest="d1"),
        with_adapter("second"),
    ]
    sent = hear(pipeline, messages)
    answers = {each.id: type(each) for each in sent if isinstance(each, Done | Failed)}
    assert answers == {"first/0": Done, "second/0": Failed}


def test_nothing_holds_a_dropped_adapter_but_the_pictures_in_hand() -> None:
    """Also where no other picture comes: its memory is the device's."""
    gone = threading.Event()

    def load(path: Path, limit_bytes: int) -> Loaded:
        adapter = fake_adapter(path, limit_bytes)
        weakref.finalize(adapter, gone.set)
        return adapter

    with running(load=load, paused=True) as world:
        world.loop.receive(LoadAdapter(file=FILE))
        world.loop.receive(with_adapter("a"))
        world.loop.receive(DropAdapter(digest="d1"))
        world.wait_for_steps("a", 1)
        assert not gone.is_set()
        world.pipeline.gate.set()
        world.answers(1)
        assert gone.wait(10)


def test_dropping_what_is_not_there_is_no_fault() -> None:
    assert isinstance(hear(FakePipeline(), [DropAdapter(digest="d9"), submitted("a")])[-1], Done)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (CheckpointError("/host/secret/d1: is truncated"), "is truncated"),
        (torch.OutOfMemoryError("CUDA"), "the device has too little memory for it"),
        (OSError("/host/secret/d1"), "the file cannot be read now"),
    ],
)
def test_a_file_that_does_not_load_is_refused_without_its_place(failure: Exception, reason: str) -> None:
    def load(path: Path, limit_bytes: int) -> Loaded:
        raise failure

    sent = hear(FakePipeline(), [LoadAdapter(file=FILE), submitted("a")], load=load)
    assert sent[0] == AdapterRefused(name="style", reason=reason)
    assert isinstance(sent[-1], Done)


def test_the_room_is_that_of_all_together() -> None:
    room: list[int] = []

    def load(path: Path, limit_bytes: int) -> Loaded:
        room.append(limit_bytes)
        return fake_adapter(path, limit_bytes)

    held = Adapters(load, limit_bytes=10)
    for name in ("a", "b"):
        held.add(AdapterFile(name=name, path=name))
    in_use = held.find([Adapter(name="b", scale=1.0, digest="b")])
    for name in ("a", "b"):
        held.answer(DropAdapter(digest=name))
    held.add(AdapterFile(name="c", path="c"))
    assert room == [10, 9, 9], "what is dropped and still used counts"
    assert in_use[0].adapter.digest == "b"


def test_there_is_a_bound_on_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_LOADED", 1)
    held = Adapters(fake_adapter, limit_bytes=10)
    held.add(AdapterFile(name="a", path="a"))
    with pytest.raises(CheckpointError, match="1 adapters are loaded, which is the limit"):
        held.add(AdapterFile(name="b", path="b"))
