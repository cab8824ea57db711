"""The front end's side of a child process: spawned with one end of a socket pair, and ended for certain.

What is spoken over the pair is the affair of whoever spawns: `server.supervisor` has workers,
`server.decoders` has decoders.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# Threads that wait for each other sleep. Spinning, which is libgomp's default, makes a picture of the small
# model take 0.6 to 5.8 s instead of 0.2 s while other processes want the two cores, as around every start.
ENVIRONMENT: Final = {"OMP_WAIT_POLICY": "passive"}
SOURCE_TREE: Final = Path(__file__).resolve().parent.parent  # the packages are run from here, not installed


async def spawn(command: Sequence[str], theirs: socket.socket) -> asyncio.subprocess.Process:
    """Start `command` with `--fd` and the number of `theirs`, which the caller then closes."""
    return await asyncio.create_subprocess_exec(
        *command,
        *("--fd", str(theirs.fileno())),
        pass_fds=[theirs.fileno()],
        cwd=SOURCE_TREE,
        env=ENVIRONMENT | os.environ,
    )


async def end(process: asyncio.subprocess.Process, *, within_s: float) -> None:
    """Wait for a process whose socket is closed; kill it after `within_s`, also when this is cancelled."""
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), within_s)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    await process.wait()
