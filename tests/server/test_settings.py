"""Settings: one default each, flags and environment, and no misspelling without a word."""

import pytest
from pydantic import ValidationError

from server.settings import EMBEDDED_MODEL, Settings, unknown_variables


def test_the_default_model_is_the_embedded_one() -> None:
    assert Settings().model == EMBEDDED_MODEL
    assert (EMBEDDED_MODEL / "model_index.json").is_file()


def test_the_environment_and_flags_set_the_same_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_MAX_BACKLOG_S", "5")
    assert Settings().max_backlog_s == 5
    assert Settings(_cli_parse_args=["--max-backlog-s", "7"]).max_backlog_s == 7


@pytest.mark.parametrize("field", ["port", "max_backlog_s", "dtype", "device", "threads"])
def test_values_are_checked(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Settings(**{field: "-1"})  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda", "cuda:0", "cuda:0,cuda:1", "cpu,cpu"])
def test_devices(device: str) -> None:
    assert Settings(device=device).device == device


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_misspelt_variables_are_found() -> None:
    environment = {"FLUX_PORT": "1", "FLUX_PROT": "2", "PATH": "", "FLUXION": ""}
    assert unknown_variables(environment) == ["FLUX_PROT"]


def test_three_growing_backlogs_step_auto_down(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().auto_steps_backlog_s == (2.0, 4.0, 6.0)
    assert Settings(_cli_parse_args=["--auto-steps-backlog-s", "1,1,2.5"]).auto_steps_backlog_s == (1, 1, 2.5)
    monkeypatch.setenv("FLUX_AUTO_STEPS_BACKLOG_S", "0,5,9")
    assert Settings().auto_steps_backlog_s == (0.0, 5.0, 9.0)


@pytest.mark.parametrize("wrong", ["2", "2,4", "2,4,6,8", "4,2,6", "-1,2,3", "a,b,c", "nan,1,2", ""])
def test_backlogs_that_make_no_sense_are_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="auto_steps_backlog_s"):
        Settings(auto_steps_backlog_s=wrong)  # type: ignore[arg-type]


def test_a_default_deadline_is_off_unless_set() -> None:
    assert Settings().default_deadline_ms == 0
    assert Settings(default_deadline_ms=2500).default_deadline_ms == 2500
    with pytest.raises(ValidationError, match="default_deadline_ms"):
        Settings(default_deadline_ms=-1)
