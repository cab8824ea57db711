"""For those who run the server: probes, metrics, and documentation that is true and needs nobody else."""

import re
from pathlib import Path
from typing import Any, cast

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from server import __version__
from server.app import dialect_routers, leniencies, open_jobs, sources_of
from server.engine import Engine
from server.http.auth import OPEN_ROUTES
from server.http.ops import ops_router, probes_router
from server.idempotency import Answers
from server.metrics import Metrics
from server.quotas import Quotas
from server.settings import Settings
from tests.server.http.fake_engine import FakeEngine, serving, wait_until


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes(method: str) -> None:
    engine = FakeEngine()
    with serving(engine) as url:
        assert httpx.request(method, f"{url}/livez").status_code == 200
        assert httpx.request(method, f"{url}/readyz").status_code == 200
        engine.ready = False
        assert httpx.request(method, f"{url}/livez").status_code == 200
        loading = httpx.request(method, f"{url}/readyz")
        assert loading.status_code == 503
        assert loading.headers["retry-after"] == "1"


def test_the_status_is_what_the_engine_and_the_metrics_know() -> None:
    with serving(FakeEngine()) as url, httpx.Client(base_url=url) as client:
        before = client.get("/v1/status").json()
        assert before["recent"] == {"requests": 0, "latencies": {}, "steps": None}
        client.post("/v1/generate", json={"prompt": "a"})
        wait_until(lambda: client.get("/v1/status").json()["recent"]["requests"] == 1)
        status = client.get("/v1/status").json()
    assert status["state"] == "ready"
    assert status["version"] == __version__
    assert 0 <= before["uptime_s"] <= status["uptime_s"] < 60
    assert status["model"] == {
        "name": "fake",
        "digest": "d1" * 32,
        "dtype": "float32",
        "numerics": "exact",
        "quantize": "none",
        "default_width": 256,
        "default_height": 256,
        "default_steps": 4,
        "max_steps": 12,
    }
    assert status["queue"] == {
        "backlog_s": 2.5,
        "limit_s": 30.0,
        "waiting": {"high": 0, "normal": 2, "low": 1},
        "running": {"high": 1, "normal": 0, "low": 0},
        "predicted_s": 1.25,
        "auto_steps": 3,
    }
    (worker,) = status["workers"]
    assert worker == {
        "state": "ready",
        "device": "cpu",
        "backlog_s": 2.5,
        "in_hand": 4,
        "sizes": ["256x256", "512x256"],
        "restarts": 1,
    }
    assert status["caches"]["images"] == status["caches"]["prompts"] == {"lookups": {}, "size_bytes": 0}
    assert status["recent"]["latencies"]["denoise"] == {"p50_s": 0.003, "p95_s": 0.003}


def test_a_server_without_a_model_has_a_status() -> None:
    with serving(FakeEngine(model_info=None)) as url:
        answer = httpx.get(f"{url}/v1/status")
    assert (answer.status_code, answer.json()["model"]) == (200, None)


def test_the_status_is_as_the_documentation_describes_it(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    answer = api["paths"]["/v1/status"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(client.get("/v1/status").json(), {**answer, "components": api["components"]})
    for name in ("Status", "QueueStats", "WorkerStats", "Steps"):
        described = api["components"]["schemas"][name]
        assert described["description"]
        assert set(described["required"]) == set(described["properties"])


def test_every_route_is_described_and_every_example_works(
    client: httpx.Client, engine: FakeEngine, tmp_path: Path
) -> None:
    api = client.get("/openapi.json").json()
    metrics = Metrics()
    answers = Answers(0, metrics=metrics)
    settings, fake = Settings(data_dir=tmp_path), cast(Engine, engine)
    jobs, outputs = open_jobs(settings, fake, metrics, Quotas())
    routers = (
        *dialect_routers(fake, answers, jobs, outputs, sources_of(settings, outputs), leniencies(settings)),
        probes_router(fake, metrics),
        ops_router(metrics, FastAPI()),
    )
    served = {
        (route.path.replace(":path", ""), method.lower())
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    operations = {
        (path, method): each for path, methods in api["paths"].items() for method, each in methods.items()
    }
    assert set(operations) == served
    for (path, method), operation in operations.items():
        assert operation["summary"], path
        assert ("401" in operation["responses"]) == (path not in OPEN_ROUTES), path
        kinds = operation.get("requestBody", {}).get("content", {})
        if content := kinds.get("application/json") or kinds.get("multipart/form-data"):
            assert set(content["example"]) <= set(content["schema"]["properties"])
            address = re.sub(r"\{\w+\}", "example-id", path)
            files = {name: (name, text) for name, text in content["example"].items()}
            sent: dict[str, Any] = (
                {"json": content["example"]} if "application/json" in kinds else {"files": files}
            )
            assert client.request(method, address, **sent).is_success, path
            objects = [api["components"]["schemas"].get(name, {}) for name in ("Input", "Parameters")]
            for schema in (content["schema"], *objects):
                for name, field in schema.get("properties", {}).items():
                    assert field.get("description"), (path, name)


def test_every_reference_in_the_description_leads_somewhere(client: httpx.Client) -> None:
    answer = client.get("/openapi.json")
    defined = set(answer.json().get("components", {}).get("schemas", {}))
    used = set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', answer.text))
    assert used <= defined


def test_the_page_needs_nobody_else(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.text)


def test_metrics_count_requests_by_route_and_outcome() -> None:
    with serving(FakeEngine()) as url, httpx.Client(base_url=url) as client:
        for prompt in ("a", "a", "overloaded"):
            client.post("/v1/generate", json={"prompt": prompt, "num_images": 2})
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'flux_requests_total{outcome="ok",route="/v1/generate"} 2.0' in answer.text
    assert 'flux_requests_total{outcome="overloaded",route="/v1/generate"} 1.0' in answer.text
    assert "flux_request_denoise_seconds_count 2.0" in answer.text


def test_hostile_paths_and_methods_make_no_new_series() -> None:
    def series(client: httpx.Client) -> set[str]:
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if line.startswith("flux_requests_total")}

    with serving(FakeEngine()) as url, httpx.Client(base_url=url) as client:

        def attack(count: int) -> None:
            for number in range(count):
                client.get(f"/{number}/{'x' * number}")
                client.get(f"/v1/models/{number}")
                client.request(["PUT", "PATCH", "DELETE", "TRACE"][number % 4], "/v1/generate")
                client.get(f"/v1/generate?prompt={number}&{number}=1")
                client.post("/v1/generate", headers={"X-Request-Id": f"request-{number}"})

        attack(2)
        client.get("/metrics")
        before = series(client)
        attack(30)
        assert series(client) == before
