"""Settings: one default each, flags and environment, and no misspelling without a word."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import EMBEDDED_MODEL, Settings, adapter_files, unknown_variables


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


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_without_keys_anybody_may_come_in_from_this_machine(host: str) -> None:
    assert Settings(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", "localhost.example.org", ""])
def test_an_address_that_others_reach_needs_keys_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"--api-keys-file FILE .* or --insecure-no-auth"):
        Settings(host=host)
    keys = tmp_path / "keys.toml"
    keys.touch()
    assert Settings(host=host, insecure_no_auth=True).host == host
    assert Settings(host=host, api_keys_file=keys).api_keys_file == keys
    with pytest.raises(ValidationError, match="exclude each other"):
        Settings(host=host, api_keys_file=keys, insecure_no_auth=True)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        (
            "cors_origins",
            ["a.example", "https://a.example/", "https://a,b", "https://*.a", "*,https://a", "null"],
        ),
        ("forwarded_allow_ips", ["proxy", "10.0.0.300", "10.0.0.1/8", "10.0.0.1,", "10.0.0.1, 10.0.0.2"]),
        ("root_path", ["flux", "/flux/", "/a b", "/"]),
    ],
)
def test_what_a_proxy_and_a_browser_are_told_is_checked(field: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(ValidationError, match=field):
            Settings(**{field: value})  # type: ignore[arg-type]


def test_several_pages_and_proxies() -> None:
    assert Settings(cors_origins="https://a.example,http://b:3000").cors_origin_list == (
        "https://a.example",
        "http://b:3000",
    )
    assert Settings(cors_origins="*").cors_origin_list == ("*",)
    assert Settings().cors_origin_list == ()
    for proxies in ("", "*", "10.0.0.1", "10.0.0.0/8,::1"):
        assert Settings(forwarded_allow_ips=proxies).forwarded_allow_ips == proxies


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


def test_adapters_are_files_by_name_or_folders_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    files = [tmp_path / "x.safetensors", folder / "a.safetensors", folder / "b-1.0.safetensors"]
    for file in (*files, folder / "notes.txt"):
        file.touch()
    x, a, b = files
    entries = [f"style={x}", str(x), str(folder)]
    expected = {"style": x, "x": x, "a": a, "b-1.0": b}
    assert adapter_files(Settings(lora=",".join(entries)).lora) == expected  # type: ignore[arg-type]
    flags = [word for entry in entries for word in ("--lora", entry)]
    assert adapter_files(Settings(_cli_parse_args=flags).lora) == expected
    monkeypatch.setenv("FLUX_LORA", f"style={x}")
    assert adapter_files(Settings().lora) == {"style": x}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("a={0}/none", "no file at .*/none"),
        ("{0}/none", "no file at .*/none"),
        ("-a={0}/x.safetensors", "'-a' is no name; allowed: 1 to 64 letters"),
        ("x={0}/x.safetensors,{0}", "have the same name"),
    ],
)
def test_adapters_that_are_not_there_are_refused(tmp_path: Path, entries: str, said: str) -> None:
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(ValidationError, match=said):
        Settings(lora=entries.format(tmp_path))  # type: ignore[arg-type]
