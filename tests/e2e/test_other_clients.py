"""Official clients that this Python cannot import: those of Node, unchanged, and an old openai.

Both are installed below `build/`, once for each set of versions.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build"
OLD_OPENAI = ("openai==1.109.1", "distro==1.9.0")
PNG = {"value": ["png"]}


@pytest.fixture(scope="session")
def node() -> Path:
    """The scripts of `tests/e2e/node` beside the packages that they import."""
    if shutil.which("npm") is None:
        pytest.skip("there is no Node")
    lock = (HERE / "node" / "package-lock.json").read_bytes()
    folder = BUILD / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        for path in HERE.glob("node/package*.json"):
            shutil.copy(path, unfinished)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=unfinished, check=True)
        unfinished.rename(folder)
    for path in HERE.glob("node/*.mjs"):
        shutil.copy(path, folder)
    return folder


def outcomes(node: Path, script: str, server: Server) -> dict[str, Any]:
    ended = subprocess.run(
        ["node", script],
        cwd=node,
        env={**os.environ, "SERVER": server.url},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_huggingface_inference(node: Path, server: Server) -> None:
    found = outcomes(node, "huggingface.mjs", server)
    assert found["defaults"] == found["parameters"] == {"value": {"type": "image/png", "kind": "png"}}
    assert found["webp"] == {"value": {"type": "image/webp", "kind": "webp"}}
    assert (found["bad"]["error"], found["bad"]["status"]) == ("ProviderApiError", 422)
    assert "parameters.width is 100; allowed: a multiple of 16" in found["bad"]["message"]
    assert found["left"]["error"] == "AbortError"


def test_openai_node(node: Path, server: Server) -> None:
    found = outcomes(node, "openai.mjs", server)
    assert found["one"] == found["address"] == PNG
    assert found["several"] == {"value": ["jpeg"] * 3}
    assert found["models"]["value"][:2] == ["flux-schnell", "black-forest-labs/FLUX.1-schnell"]
    assert found["model"] == {"value": "black-forest-labs/FLUX.1-schnell"}
    assert (found["bad"]["error"], found["bad"]["status"]) == ("BadRequestError", 400)
    assert found["left"]["error"] == "APIUserAbortError"


def test_the_vercel_ai_sdk(node: Path, server: Server) -> None:
    """It asks for several pictures in requests of one each."""
    for provider, found in outcomes(node, "aisdk.mjs", server).items():
        assert found["one"] == PNG, provider
        assert found["several"] == {"value": ["png"] * 3}
        assert (found["bad"]["error"], found["bad"]["status"]) == ("AI_APICallError", 400)
        assert 'size is "100x100"; allowed: ' in found["bad"]["message"].replace("\\", "")
        assert found["left"]["error"] == "TimeoutError"


def test_an_old_openai(server: Server) -> None:
    folder = BUILD / OLD_OPENAI[0].replace("==", "-")
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, *OLD_OPENAI], check=True)
    ended = subprocess.run(
        [sys.executable, str(HERE / "openai_1.py")],
        env={**os.environ, "SERVER": server.url, "PYTHONPATH": str(folder)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(ended.stdout) == {
        "version": "1.109.1",
        "several": [True, True],
        "address": "data:image/png;base64",
        "models": ["flux-schnell", "black-forest-labs/FLUX.1-schnell"],
        "param": "size",
        "left": "APITimeoutError",
    }
