"""fal's proxy: one route that answers as the address in a header, and goes nowhere else."""

import httpx
import pytest

from tests.server.http.fal_requests import APP, RUN, SMALL, finished

PROXY = "/api/fal/proxy"


def test_the_proxy_answers_as_the_address_in_its_header(client: httpx.Client) -> None:
    def target(address: str) -> dict[str, str]:
        return {"x-fal-target-url": address}

    ran = client.post(PROXY, json=SMALL, headers=target(f"https://fal.run/{APP}"))
    assert ran.json()["images"] == client.post(RUN, json=SMALL).json()["images"]
    submitted = client.post(PROXY, json=SMALL, headers=target(f"https://queue.fal.run/{APP}")).json()
    finished(client, submitted)
    address = f"https://queue.fal.run/fal-ai/flux/requests/{submitted['request_id']}"
    status = client.get(PROXY, headers=target(f"{address}/status?logs=1"))
    assert [each["message"] for each in status.json()["logs"]] == ["Using seed: 5"]
    result = client.get(PROXY, headers=target(address))
    assert result.json()["seed"] == 5
    assert result.headers["x-fal-request-id"] == submitted["request_id"]
    assert client.put(PROXY, headers=target(f"{address}/cancel")).status_code == 400
    assert client.get(PROXY, headers=target("https://fal.run/nothing")).status_code == 404
    assert client.post(PROXY, json=SMALL, headers=target(f"https://fal.run/{APP}/")).status_code == 404
    assert client.get(PROXY, headers=target(f"https://fal.run/{APP}")).status_code == 405


@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "nonsense",
        "https://example.com/fal-ai/flux/schnell",
        "https://rest.fal.ai/storage/upload/initiate",
        "https://fal.run.example.com/fal-ai/flux/schnell",
        "https://fal.run@example.com/fal-ai/flux/schnell",
        "https://fal.run:8000/fal-ai/flux/schnell",
        "http://fal.run/fal-ai/flux/schnell",
        "https://[fal.run/fal-ai/flux/schnell",
    ],
)
def test_the_proxy_goes_nowhere_else(client: httpx.Client, target: str | None) -> None:
    answer = client.post(PROXY, json=SMALL, headers={} if target is None else {"x-fal-target-url": target})
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


def test_the_proxy_reaches_nothing_but_this_dialect(client: httpx.Client) -> None:
    for path in ("/../../metrics", "/../run/../../livez", "//livez"):
        answer = client.get(PROXY, headers={"x-fal-target-url": f"https://fal.run{path}"})
        assert answer.status_code in (404, 405), path  # dots are the name of an app, as everything is
