"""Adapters are put and removed while workers come and go: names mean files that every worker has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from server.adapter_files import AdapterFiles
from server.adapters import Adapters
from server.engine import Engine
from server.errors import InvalidRequest, NotFound, NotReady, ServerError, WorkerLost
from server.generation import Adapter, AdapterInfo
from server.protocol import AdapterLoaded, DropAdapter, LoadAdapter, ToWorker
from server.reuse import Reuse
from server.supervisor import State, Supervisor
from tests.server.engines import engine_on, request, run, start, until, worker_pid


class World:
    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder, self.engine = folder, engine

    async def put(self, name: str, text: str) -> None:
        upload = self.engine.adapters.files.begin()
        upload.write_text(text)
        await self.engine.adapters.put(name, upload)

    def names(self) -> dict[str, str]:
        return {each.name: each.digest for each in self.engine.model.adapters}

    async def picture_without(self) -> None:
        await self.engine.submit(request())

    async def picture(self, name: str, scale: float = 0.5, reuse: Reuse = Reuse.NEVER) -> str:
        """Return what a worker was asked for beside the picture itself."""
        wanted = request(adapters=(Adapter(name=name, scale=scale),))
        (image,) = (await self.engine.submit(wanted, reuse)).images
        return image.data.decode().partition("256x256 ")[2]


@asynccontextmanager
async def world(
    folder: Path, *models: str, given: dict[str, Path] | None = None, image_cache_bytes: int = 0
) -> AsyncIterator[World]:
    files = AdapterFiles(folder, given or {})
    async with engine_on(*models, adapters=Adapters(files), image_cache_bytes=image_cache_bytes) as engine:
        yield World(folder, engine)


def test_what_is_put_is_served_and_what_is_removed_is_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as here:
            await here.put("style", "d1")
            assert here.names() == {"style": "d1"}
            assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]
            assert await here.picture("style") == "d1 0.5"
            await here.engine.adapters.remove("style")
            assert here.names() == {}
            assert list(tmp_path.iterdir()) == []
            with pytest.raises(InvalidRequest, match=r"loras is 'style', .* there are: none"):
                await here.picture("style")
            with pytest.raises(NotFound, match="name is 'style'"):
                await here.engine.adapters.remove("style")

    run(story)


def test_a_name_that_is_put_again_means_the_new_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        async with world(tmp_path, image_cache_bytes=1 << 20) as here:
            await here.put("style", "d1")
            await here.put("twin", "d1")
            assert await here.picture("style", reuse=Reuse.ALLOWED) == "d1 0.5"
            await here.put("style", "d2")
            assert await here.picture("style", reuse=Reuse.ALLOWED) == "d2 0.5"
            await here.put("twin", "d2")
            assert await here.picture("twin", reuse=Reuse.ALLOWED) == "d2 0.5"
            assert here.names() == {"style": "d2", "twin": "d2"}

    run(story)
    assert capfd.readouterr().err.count("dropped d1") == 1, "while a name means it, it stays"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("refuse", InvalidRequest, "no adapter that can be served: it was asked to refuse"),
        ("die", WorkerLost, "the workers died while they took the adapter"),
    ],
)
def test_what_no_worker_takes_leaves_what_was_there(
    tmp_path: Path, text: str, error: type[ServerError], message: str
) -> None:
    async def story() -> None:
        async with world(tmp_path) as here:
            await here.put("style", "d1")
            with pytest.raises(error, match=message):
                await here.put("style", text)
            await here.engine.wait_ready()
            assert here.names() == {"style": "d1"}
            assert (tmp_path / "style.safetensors").read_text() == "d1"
            assert await here.picture("style") == "d1 0.5"

    run(story)


def test_what_one_worker_refuses_no_other_keeps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with world(tmp_path, "fake", "picky") as here:
            await until(lambda: all(worker.supervisor.state == "ready" for worker in here.engine._workers))
            with pytest.raises(InvalidRequest, match="it was asked to refuse"):
                await here.put("style", "d1")
            assert here.names() == {}
            await here.picture_without()

    run(story)
    assert "dropped d1" in capfd.readouterr().err


def test_a_worker_that_comes_back_has_what_is_served(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path) as here:
            await here.put("style", "d1")
            await here.put("other", "d2")
            await here.engine.adapters.remove("other")
            before = await worker_pid(here.engine)
            here.engine._workers[0].supervisor.kill()
            await until(lambda: here.engine.ready and here.engine._workers[0].supervisor.pid != before)
            assert here.names() == {"style": "d1"}
            assert here.engine._workers[0].supervisor.start_message.adapters[0].name == "style"
            assert await here.picture("style") == "d1 0.5"

    run(story)


def test_a_worker_that_was_starting_meanwhile_gets_what_it_lacks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        gate = tmp_path / "gate"
        async with world(tmp_path / "adapters", "fake", f"after {gate}") as here:
            await here.put("style", "d1")
            gate.touch()
            said = ""

            def is_loaded_twice() -> bool:
                nonlocal said
                said += capfd.readouterr().err
                return said.count("loaded style d1") == 2

            await until(is_loaded_twice)

    run(story)


class SilentWorker:
    """What a worker is told; its answers are the test's."""

    def __init__(self) -> None:
        self.state, self.start_message = State.READY, start("fake")
        self.told: list[str] = []

    def send(self, message: ToWorker) -> None:
        match message:
            case LoadAdapter(file=file):
                self.told.append(f"load {file.name}")
            case DropAdapter(digest=digest):
                self.told.append(f"drop {digest}")


def loaded(name: str, digest: str) -> AdapterLoaded:
    return AdapterLoaded(adapter=AdapterInfo(name=name, digest=digest, size_bytes=2))


def test_a_worker_that_loads_what_it_lacks_answers_that_first(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "style.safetensors").write_text("d1")
        adapters, worker = Adapters(AdapterFiles(tmp_path, {})), SilentWorker()
        adapters.attach([cast(Supervisor, worker)])
        adapters.ready(0, [loaded("style", "d1").adapter])
        adapters.lost(0)
        adapters.ready(0, [])
        putting = asyncio.create_task(adapters.put("other", adapters.files.begin()))
        await until(lambda: worker.told == ["load style", "load other"])
        adapters.hear(0, loaded("style", "d1"))
        adapters.hear(0, loaded("other", "d2"))
        assert (await putting).name == "other"
        assert {each.name: each.digest for each in adapters.served} == {"style": "d1", "other": "d2"}
        assert worker.told == ["load style", "load other"], "and nothing twice"

    run(story)


def test_what_is_loaded_too_late_is_dropped(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "style.safetensors").write_text("d1")
        adapters, worker = Adapters(AdapterFiles(tmp_path, {})), SilentWorker()
        adapters.attach([cast(Supervisor, worker)])
        adapters.ready(0, [loaded("style", "d1").adapter])
        adapters.lost(0)
        adapters.ready(0, [])
        await adapters.remove("style")
        adapters.hear(0, loaded("style", "d1"))
        putting = asyncio.create_task(adapters.put("other", adapters.files.begin()))
        await until(lambda: worker.told[-1] == "load other")
        putting.cancel()
        await asyncio.wait([putting])
        adapters.hear(0, loaded("other", "d2"))
        assert worker.told == ["load style", "drop d1", "load other", "drop d2"]

    run(story)


def test_nothing_is_put_before_a_worker_is_ready(tmp_path: Path) -> None:
    async def story() -> None:
        files = AdapterFiles(tmp_path, {})
        async with engine_on(f"after {tmp_path / 'gate'}", adapters=Adapters(files), ready=False) as engine:
            with pytest.raises(NotReady):
                await engine.adapters.put("style", files.begin())
            with pytest.raises(NotReady):
                await engine.adapters.remove("style")

    run(story)


def test_what_the_settings_give_is_there_at_the_start_and_stays(tmp_path: Path) -> None:
    given, folder = tmp_path / "given.safetensors", tmp_path / "adapters"
    given.write_text("d1")
    folder.mkdir()
    (folder / "kept.safetensors").write_text("d2")
    (folder / "style.safetensors").write_text("hidden")

    async def story() -> None:
        async with world(folder, given={"style": given}) as here:
            assert here.names() == {"style": "d1", "kept": "d2"}
            assert {each.name: each.required for each in here.engine.adapters.files.all()} == {
                "style": True,
                "kept": False,
            }
            with pytest.raises(InvalidRequest, match="'style', which was given with --lora"):
                await here.engine.adapters.remove("style")
            with pytest.raises(InvalidRequest, match="'style', which was given with --lora"):
                here.engine.adapters.check_free("style")
            assert await here.picture("kept", scale=-1.0) == "d2 -1"

    run(story)


def test_what_was_put_and_is_left_out_at_the_start_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "misfit.safetensors").write_text("refuse")

    async def story() -> None:
        async with world(tmp_path) as here:
            assert here.names() == {}
            await here.engine.adapters.remove("misfit")
            assert list(tmp_path.iterdir()) == []
            assert here.engine._workers[0].supervisor.start_message.adapters == ()
            with pytest.raises(NotFound, match="name is 'misfit'"):
                await here.engine.adapters.remove("misfit")

    run(story)


def test_of_uploads_that_were_never_whole_nothing_is_left(tmp_path: Path) -> None:
    files = AdapterFiles(tmp_path / "adapters", {})
    files.clear_uploads()
    upload = files.begin()
    assert files.all() == ()
    files.clear_uploads()
    assert not upload.exists()
