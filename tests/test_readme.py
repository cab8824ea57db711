"""The README's commands do what it says, and its table is the settings."""

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from server.keys import parse
from server.settings import markdown_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def block(language: str, word: str) -> str:
    (found,) = (text for kind, text in BLOCKS if kind == language and word in text)
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of what `make serve` serves."""
    folder = tmp_path_factory.mktemp("served")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["make", "serve", f"ARGS=--port 0 --data-dir {folder} --calibration-s 0"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not (found := re.search(r"url=(\S+)\s", (folder / "log").read_text())):
            assert time.monotonic() < deadline
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        with httpx.Client() as client:
            while client.get(f"{found[1]}/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield found[1]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_make_serve_sets_up_and_serves(url: str) -> None:
    commands = block("bash", "make serve").splitlines()
    assert [shlex.split(line, comments=True) for line in commands] == [["make", "serve"], ["make", "test"]]
    assert httpx.get(f"{url}/livez").status_code == 200


def test_the_curl_command_writes_a_picture(url: str, tmp_path: Path) -> None:
    command = block("bash", "curl").replace("http://127.0.0.1:8000", url)
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True, capture_output=True)
    with Image.open(tmp_path / "circle.png") as image:
        assert image.size == (256, 256)


def test_the_program_in_python_gets_a_picture(url: str) -> None:
    code = block("python", "OpenAI").replace("http://127.0.0.1:8000", url)
    subprocess.run([sys.executable, "-c", code + "\nassert picture.data[0].b64_json\n"], check=True)


def test_the_commands_for_keys_make_and_revoke_one(tmp_path: Path) -> None:
    lines = [line for line in block("bash", "server.keys").splitlines() if "server.keys" in line]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = []
    for line in lines:
        command = [sys.executable, *shlex.split(line, comments=True)[1:]]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        printed.append(ended.stdout)
    created, listed, revoked = printed
    assert created.startswith("schnell_")
    assert "alice" in listed
    assert revoked == ""
    assert parse((tmp_path / "keys.toml").read_text()) == {}


def test_the_settings_table_is_the_settings() -> None:
    table = README.split("<!-- settings: python -m server.settings -->\n")[1].split("<!-- /settings -->")[0]
    assert table == markdown_table(), "run `python -m server.settings` and paste what it prints"


def test_every_file_that_it_names_exists() -> None:
    for cell in re.findall(r"^\| \d+ \| (.+?) \|", README, re.MULTILINE):
        names = re.findall(r"`([\w/.]+)`", cell)
        folder = Path()
        for name in names:
            path = Path(name) if "/" in name else folder / name
            assert (ROOT / path).exists(), path
            folder = path.parent


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


def anchors(path: Path) -> set[str]:
    """Return the headings of a file as they stand in links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "module", ["server", "server.keys", "model.generate", "model.memory", "model.verify"]
)
def test_every_command_has_help(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    for name in (module, f"{module}.__main__"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # it is run, not imported
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert "usage: python -m " + module in capsys.readouterr().out
