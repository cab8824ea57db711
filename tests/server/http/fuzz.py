"""`python -m tests.server.http.fuzz --cases 5000`: what is answered is what is described.

Schemathesis reads the description of all routes and asks what it allows and what it forbids; an answer of
5xx, a status, a content type or a body that is not described is a finding. The edge is the real one, the
engine is a fake: pictures are not what is tested here. With `--keys` the server asks for a key, which comes
with every request.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from server.app import Edge
from server.http.auth import Door
from server.keys import KeysFile, create
from tests.server.http.fake_engine import FakeEngine, serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.server.http.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="the least number of requests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phases", default="examples,coverage,fuzzing")
    parser.add_argument("--keys", action="store_true", help="a server that asks for keys")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as keys, serving(FakeEngine(), edge_of(Path(keys), options)) as url:
        api = httpx.get(f"{url}/openapi.json").json()
        operations = [each for methods in api["paths"].values() for each in methods.values()]
        varied = sum("requestBody" in each or "parameters" in each for each in operations)
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
        command += ["--checks", ",".join(CHECKS), "--phases", options.phases, "--no-color"]
        command += ["--max-examples", str(-(-options.cases // varied)), "--seed", str(options.seed)]
        if options.keys:
            command += ["--header", f"Authorization: Bearer {create(Path(keys) / 'keys.toml', 'fuzz')}"]
        with tempfile.TemporaryDirectory() as folder:  # where it keeps what it found
            environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
            ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    sys.stdout.write(ended.stdout + ended.stderr)
    generated = re.search(r"(\d+) generated", ended.stdout)
    if generated is None or int(generated[1]) < options.cases:
        sys.stdout.write(f"fewer than {options.cases} cases\n")
        return 1
    return ended.returncode


def edge_of(folder: Path, options: argparse.Namespace) -> Edge:
    if not options.keys:
        return Edge()
    create(folder / "keys.toml", "nobody")
    return Edge(door=Door(KeysFile.read(folder / "keys.toml")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
