"""Lines on stderr: readable by machines, without prompts, and never a reason to wait."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGURE = "from server import logs; import structlog; log = structlog.get_logger('a')\n"


@contextmanager
def logging_process(script: str, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `script` in a process that is killed after half a minute: one that blocks fails its test."""
    command = [sys.executable, "-c", CONFIGURE + script]
    process = subprocess.Popen(command, cwd=ROOT, **streams)  # type: ignore[call-overload]
    killer = threading.Timer(30, process.kill)
    killer.start()
    try:
        with process:
            yield process
    finally:
        killer.cancel()


def logged(script: str) -> list[str]:
    with logging_process(script, stderr=subprocess.PIPE) as process:
        _, error = process.communicate()
    assert process.returncode == 0, error
    return error.decode().splitlines()


RAISING = """
def step(prompt):
    raise ValueError("it went wrong")
try:
    step("the secret prompt")
except ValueError:
    log.exception("step_failed", images=["a/0"])
"""


def test_json_lines_say_where_it_failed_and_keep_the_prompt() -> None:
    (line,) = logged("logs.configure(log_format='json', log_level='info')" + RAISING)
    event = json.loads(line)
    assert (event["event"], event["level"], event["images"]) == ("step_failed", "error", ["a/0"])
    assert event["exception"][0]["exc_value"] == "it went wrong"
    assert [frame["name"] for frame in event["exception"][0]["frames"]] == ["<module>", "step"]
    assert "secret" not in line


def test_text_lines_carry_the_traceback_and_keep_the_prompt() -> None:
    lines = logged("logs.configure(log_format='text', log_level='info')" + RAISING)
    assert "step_failed" in lines[0]
    assert lines[-1] == "ValueError: it went wrong"
    assert not any("the secret prompt" in line for line in lines if "step(" not in line)


def test_records_of_libraries_have_the_same_form() -> None:
    script = "logs.configure(log_format='json', log_level='warning')\nimport logging\n"
    (line,) = logged(script + "logging.getLogger('b').info('no'); logging.getLogger('b').error('%s', 'yes')")
    assert json.loads(line)["event"] == "yes"


def test_what_was_logged_just_before_the_end_is_written() -> None:
    script = "logs.configure(log_format='json', log_level='info')\n"
    lines = logged(script + "for number in range(5000): log.info('line', number=number)")
    assert [json.loads(line)["number"] for line in lines] == list(range(5000))
    (last,) = logged(script + "import os\nlog.info('last'); logs.flush(); os._exit(0)")
    assert "last" in last


def test_a_pipe_that_nobody_reads_holds_nothing_up_and_the_loss_is_told() -> None:
    script = """
logs.configure(log_format='json', log_level='info')
for number in range(30_000):
    log.info("x" * 200)
print("done", flush=True)
input()
log.info("after")
"""
    with logging_process(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"done\n"  # while nobody has read a line of the log
        process.stdin.write(b"\n")
        _, error = process.communicate()
        assert process.returncode == 0
    events = [json.loads(line) for line in error.splitlines()]
    told = [int(event["event"].split()[0]) for event in events if event["event"].endswith("nobody read them")]
    assert told
    assert sum(told) + len(events) - len(told) == 30_001


def test_the_end_does_not_wait_for_a_reader_either() -> None:
    reading, writing = os.pipe()
    script = "logs.configure(log_format='json', log_level='info')\nfor _ in range(3000): log.info('x' * 200)"
    try:
        began = time.monotonic()
        with logging_process(script, stderr=writing) as process:
            assert process.wait() == 0
        assert time.monotonic() - began < 15
    finally:
        os.close(reading)
        os.close(writing)
