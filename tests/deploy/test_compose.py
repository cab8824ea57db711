"""docker-compose.yml is what Compose reads, and no service has more rights than it needs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]


def test_it_follows_the_compose_schema() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(COMPOSE),
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
    assert all(volume.endswith(":ro") for volume in service.get("volumes", []))


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_compose_waits_longer_than_the_server_drains(name: str) -> None:
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > Settings().drain_s + 5


def test_every_variable_is_a_setting() -> None:
    names = {f"FLUX_{name}".upper() for name in Settings.model_fields}
    for service in SERVICES.values():
        assert set(service.get("environment", {})) <= names


def test_what_is_mounted_from_here_exists() -> None:
    assert SERVICES["prometheus"]["volumes"] == ["./deploy/monitoring:/etc/prometheus:ro"]
    assert (ROOT / "deploy" / "monitoring" / "prometheus.yml").is_file()
