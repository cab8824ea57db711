"""The Dockerfile, as far as it can be checked without building it; its replay is a command of its own."""

import fnmatch
import json
from pathlib import Path

from tests.deploy.dockerfile import ROOT, instructions, stages

TEXT = (ROOT / "Dockerfile").read_text()
FINAL = {instruction.name: instruction.value for instruction in stages(TEXT)[-1]}


def test_everything_that_is_copied_exists_and_is_sent() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for instruction in instructions(TEXT):
        if instruction.name == "COPY" and not instruction.value.startswith("--from"):
            for source in instruction.value.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), source


def test_all_of_our_packages_are_in_the_image() -> None:
    copied = {step.value.split()[0] for step in instructions(TEXT) if step.name == "COPY"}
    assert {"server", "model", "kernels"} <= copied


def test_it_runs_as_nobody_special() -> None:
    uid, gid = FINAL["USER"].split(":")
    assert int(uid) >= 10_000
    assert int(gid) >= 10_000
    order = [instruction.name for instruction in stages(TEXT)[-1]]
    assert "RUN" not in order[order.index("USER") :]


def test_both_stages_have_the_same_interpreter() -> None:
    images = [stage[0].value.split()[0] for stage in stages(TEXT)]
    assert len(set(images)) == 1
    assert ":" in images[0]


def test_pip_is_the_one_that_make_uses() -> None:
    pinned = next(
        line.split("=")[1].strip()
        for line in (ROOT / "Makefile").read_text().splitlines()
        if "PIP_VERSION =" in line
    )
    assert f"pip=={pinned}" in TEXT


def test_health_is_asked_of_the_server_with_its_own_settings() -> None:
    assert json.loads(FINAL["HEALTHCHECK"].split("CMD", 1)[1]) == ["python", "-m", "server.health"]
    assert json.loads(FINAL["ENTRYPOINT"]) == ["python", "-m", "server"]
    assert FINAL["STOPSIGNAL"] == "SIGTERM"


def test_nothing_secret_is_built_in() -> None:
    assert not any(word in TEXT.lower() for word in ("token", "password", "secret", "api_key"))
    assert not list(Path(ROOT).glob("*.pem"))
