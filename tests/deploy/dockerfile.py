"""Enough of a Dockerfile parser to check ours, and to replay it where no Docker engine runs.

`python -m tests.deploy.dockerfile FOLDER` replays the build in a clean folder: every COPY and RUN of the
build stage, then the entry point, then the health check.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_S = 120


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str


def instructions(text: str) -> list[Instruction]:
    """Return the instructions with continuation lines joined and comments dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        Instruction(*(part.strip() for part in line.split(None, 1)))
        for line in joined.splitlines()
        if line.strip()
    ]


def stages(text: str) -> list[list[Instruction]]:
    """Return the instructions of every stage, each with its FROM in front."""
    found: list[list[Instruction]] = []
    for instruction in instructions(text):
        if instruction.name == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def replay(root: Path) -> None:
    """Run the build stage under `root`, then start the server from it, read-only, as the image does."""
    build, final = stages((ROOT / "Dockerfile").read_text())
    workdir, environment = root, dict(os.environ)
    for step in build:
        match step.name:
            case "WORKDIR":
                workdir = root / step.value.lstrip("/")
                workdir.mkdir(parents=True, exist_ok=True)
            case "ARG":
                name, _, default = step.value.partition("=")
                environment[name] = default.strip('"')
            case "COPY":
                *sources, target = step.value.split()
                for source in sources:
                    copy(ROOT / source, workdir / target / (source if target in (".", "./") else ""))
            case "RUN":
                command = step.value.replace("/opt/venv", str(root / "opt/venv")).replace(
                    "/app", str(root / "app")
                )
                subprocess.run(["bash", "-euc", command], cwd=workdir, env=environment, check=True)
    subprocess.run(["chmod", "-R", "a-w", str(root / "app")], check=True)
    try:
        serve(root, final)
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(root / "app")], check=True)


def serve(root: Path, final: list[Instruction]) -> None:
    by_name = {step.name: step.value for step in final}
    environment = dict(pair.split("=", 1) for pair in by_name["ENV"].split())
    environment["PATH"] = f"{root / 'opt/venv/bin'}:/usr/bin:/bin"
    environment |= {"FLUX_HOST": "127.0.0.1", "FLUX_PORT": "8017", "FLUX_DATA_DIR": str(root / "data")}
    server = subprocess.Popen(json.loads(by_name["ENTRYPOINT"]), cwd=root / "app", env=environment)
    check = json.loads(by_name["HEALTHCHECK"].split("CMD", 1)[1])
    try:
        began = time.monotonic()
        while subprocess.run(
            check, cwd=root / "app", env=environment, stderr=subprocess.DEVNULL, check=False
        ).returncode:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() - began < READY_S, "the server did not become healthy"
        sys.stdout.write(f"healthy after {time.monotonic() - began:.1f} s\n")
    finally:
        server.terminate()
    assert server.wait(30) == 0
    sys.stdout.write("SIGTERM ended it with status 0\n")


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    os.chdir(folder)
    replay(folder)
