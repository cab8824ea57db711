"""`python -m tests.server.http.cog_reference PYTHON`: record the answers of the real Cog server.

PYTHON is an interpreter with `cog==0.23.1` installed; nothing else needs it. The server is given our own
schema of the input, which shows that it can be read.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from server.http.predictions import OUTPUT_SCHEMA, Input
from tests.server.http.cog_reference.exchanges import ALONE, ANSWERS, LOADING, ask, ask_while_it_runs

PORT = 5079


def main(python: str) -> None:
    with tempfile.TemporaryDirectory() as folder, cog_server(Path(folder), python) as client:
        answers = {name: ask(client, asked) for name, asked in LOADING.items()}
        for name, asked in ALONE.items():
            wait_for(client, "READY")  # it takes one prediction at a time
            answers[name] = ask(client, asked)
        answers |= ask_while_it_runs(client)
    ANSWERS.write_text(json.dumps(answers, indent=1, sort_keys=True) + "\n")


@contextmanager
def cog_server(folder: Path, python: str) -> Iterator[httpx.Client]:
    """Start the real server in `folder`; yields a client as soon as it answers."""
    (folder / "predict.py").write_bytes(Path(__file__).with_name("predict.py").read_bytes())
    (folder / ".cog").mkdir()
    schemas = {"Input": Input.model_json_schema(), "Output": OUTPUT_SCHEMA}
    document = {"openapi": "3.0.2", "info": {"title": "Cog", "version": "0"}, "paths": {}}
    (folder / ".cog" / "openapi_schema.json").write_text(
        json.dumps(document | {"components": {"schemas": schemas}})
    )
    path = f"{Path(python).parent}:{os.environ['PATH']}"  # its worker is started as `python`
    environment = {**os.environ, "PATH": path, "PORT": str(PORT)}
    process = subprocess.Popen(
        [python, "-m", "cog.server.http", "--host", "127.0.0.1"],
        cwd=folder,
        env=environment | {"COG_PREDICT_TYPE_STUB": "predict.py:Predictor"},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30) as client:
            wait_for(client, "STARTING")
            yield client
    finally:
        process.terminate()
        process.wait()


def wait_for(client: httpx.Client, status: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if client.get("/health-check").json()["status"] == status:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"never {status}")


if __name__ == "__main__":
    main(sys.argv[1])
