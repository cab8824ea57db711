"""What is shipped for Prometheus and Grafana is valid, and asks for metrics that the server exports."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.http.errors import ERROR_CODES
from server.metrics import Metrics

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
GRAFANA = FOLDER / "grafana"
ROOT = FOLDER.parents[1]
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "schnell-server.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
FAMILIES = dict(re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().exposition().decode(), re.MULTILINE))
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def series() -> set[str]:
    """Return every name that a query can ask for."""
    names = {name for name, kind in FAMILIES.items() if kind != "histogram"}
    histograms = [name for name, kind in FAMILIES.items() if kind == "histogram"]
    return names | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def asked(text: str) -> set[str]:
    return set(re.findall(r"\bflux_\w+", text))


@needs_promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    check("config", FOLDER / "prometheus.yml")


@needs_promtool
def test_promtool_accepts_every_query_of_the_dashboard(tmp_path: Path) -> None:
    queries = [query for panel in PANELS for query in expressions(panel)]
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    check("rules", path)


def check(what: str, path: Path) -> None:
    command = ["promtool", "check", what, path.name]
    ended = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_prometheus_scrapes_the_services_of_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    for target in job["static_configs"][0]["targets"]:
        name, port = target.split(":")
        service = compose["services"][name]
        assert service["environment"]["FLUX_OPS_PORT"] == port
        assert not any(published.endswith(f":{port}") for published in service["ports"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_rule_asks_for_a_metric_that_exists(alert: dict[str, str]) -> None:
    assert asked(alert["expr"]) or alert["expr"].startswith("up{")
    assert asked(alert["expr"]) <= series()


def test_the_outcomes_that_rules_name_are_error_codes() -> None:
    named = [re.findall(r'flux_requests_total{outcome=~?"([^"]+)"', alert["expr"]) for alert in ALERTS]
    assert {code for found in named for each in found for code in each.split("|")} <= ERROR_CODES


def test_the_buckets_that_rules_name_exist() -> None:
    metrics = Metrics()
    for alert in ALERTS:
        for name, bound in re.findall(r'(flux_\w+_bucket){le="([^"]+)"', alert["expr"]):
            assert f'{name}{{le="{bound}"}}' in metrics.exposition().decode()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_asks_for_metrics_that_exist(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert expressions(panel)
    for query in expressions(panel):
        assert asked(query), query
        assert asked(query) <= series()


def test_the_dashboard_shows_every_metric_of_the_server() -> None:
    shown = " ".join(query for panel in PANELS for query in expressions(panel))
    families = {name for name in FAMILIES if not name.endswith("_created")}
    assert {name for name in families if name not in shown} == set()


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in PANELS
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (volume,) = compose["grafana"]["volumes"]
    assert volume == "./deploy/monitoring/grafana:/etc/grafana:ro"
    (source,) = provisioned("datasources")["datasources"]
    assert source["url"] == "http://prometheus:" + compose["prometheus"]["ports"][0].rpartition(":")[2]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    (provider,) = provisioned("dashboards")["providers"]
    folder = GRAFANA / Path(provider["options"]["path"]).relative_to("/etc/grafana")
    assert (folder / "schnell-server.json").is_file()
    home = re.search(r"^default_home_dashboard_path = /etc/grafana/(.+)$", grafana_ini(), re.MULTILINE)
    assert home is not None
    assert (GRAFANA / home[1]).is_file()


def provisioned(kind: str) -> dict[str, Any]:
    (path,) = (GRAFANA / "provisioning" / kind).iterdir()
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def grafana_ini() -> str:
    return (GRAFANA / "grafana.ini").read_text()


def test_the_documents_name_metrics_that_exist() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert asked("\n".join(path.read_text() for path in documents)) <= series() | set(FAMILIES)
