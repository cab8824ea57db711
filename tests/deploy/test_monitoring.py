"""Prometheus' configuration is valid, and its rules ask for metrics that the server exports."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from server.metrics import Metrics

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_configuration_and_rules() -> None:
    ended = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_prometheus_scrapes_the_services_of_the_compose_file() -> None:
    compose = yaml.safe_load((FOLDER.parents[1] / "docker-compose.yml").read_text())
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    for target in job["static_configs"][0]["targets"]:
        name, port = target.split(":")
        service = compose["services"][name]
        assert service["environment"]["FLUX_OPS_PORT"] == port
        assert not any(published.endswith(f":{port}") for published in service["ports"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_rule_asks_for_a_metric_that_exists(alert: dict[str, str]) -> None:
    exported = set(re.findall(r"^# TYPE (\w+) ", Metrics().exposition().decode(), re.MULTILINE))
    asked = set(re.findall(r"flux_\w+", alert["expr"]))
    assert asked or alert["expr"].startswith("up{")
    assert asked <= exported
