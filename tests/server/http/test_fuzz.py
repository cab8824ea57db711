"""What is answered is what is described, in as many cases as a test has time for."""

import pytest

from tests.server.http.fuzz import main


def test_nothing_that_is_answered_is_not_described(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--cases", "200", "--phases", "examples,fuzzing"]) == 0, capfd.readouterr().out
