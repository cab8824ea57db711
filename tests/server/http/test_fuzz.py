"""What is answered is what is described, in as many cases as a test has time for."""

import pytest

from tests.server.http.fuzz import main


def test_nothing_that_is_answered_is_not_described(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cases", "200", "--phases", "examples,fuzzing", "--keys"]
    assert main(arguments) == 0, capfd.readouterr().out
