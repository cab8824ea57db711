"""docker-compose.yml is what Compose reads, and no service has more rights than it needs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.mark.parametrize("path", [COMPOSE, ROOT / "deploy" / "keys.yml"], ids=lambda path: path.name)
def test_it_follows_the_compose_schema(path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(path),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith("0")
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    writable = [volume for volume in service.get("volumes", []) if not volume.endswith(":ro")]
    assert set(writable) <= {"data:/data", "data-gpu:/data"}


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_compose_waits_longer_than_the_server_drains(name: str) -> None:
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > Settings().drain_s + 5


def settings_of(*environments: dict[str, str]) -> Settings:
    """Return what a server in the image makes of variables; files inside the container exist only there."""
    shown = {name: value for each in environments for name, value in each.items()}
    defaults = {name: re.sub(r"\$\{\w+:-(\w*)\}", r"\1", value) for name, value in shown.items()}
    values = {name.removeprefix("FLUX_").lower(): value for name, value in defaults.items()}
    assert set(values) <= set(Settings.model_fields)
    return Settings(**({"host": "0.0.0.0"} | values))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_every_server_starts_with_its_variables(name: str) -> None:
    assert settings_of(SERVICES[name]["environment"]).insecure_no_auth
    assert settings_of(SERVICES[name]["environment"]).verify_weights == "auto"


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_with_the_keys_file_every_server_asks_for_a_key(name: str, tmp_path: Path) -> None:
    keyed = yaml.safe_load((ROOT / "deploy" / "keys.yml").read_text())["services"][name]
    (volume,) = keyed["volumes"]
    folder = volume.removesuffix(":ro").rpartition(":")[2]
    inside = keyed["environment"]["FLUX_API_KEYS_FILE"]
    assert inside.startswith(f"{folder}/")
    here = tmp_path / "keys.toml"
    here.write_text("")
    with pytest.raises(ValidationError, match=re.escape("no file at /keys/keys.toml")):
        settings_of(SERVICES[name]["environment"], keyed["environment"])
    found = settings_of(
        SERVICES[name]["environment"], keyed["environment"] | {"FLUX_API_KEYS_FILE": str(here)}
    )
    assert found.api_keys_file == here


def test_what_is_mounted_from_here_exists() -> None:
    assert SERVICES["prometheus"]["volumes"] == ["./deploy/monitoring:/etc/prometheus:ro"]
    assert (ROOT / "deploy" / "monitoring" / "prometheus.yml").is_file()
