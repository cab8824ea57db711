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
