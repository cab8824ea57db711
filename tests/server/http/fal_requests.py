"""Requests of fal's dialect and where they go; not a module of tests."""

from typing import Any

import httpx

from tests.server.http.fake_engine import wait_until

APP = "fal-ai/flux/schnell"
RUN = f"/fal/run/{APP}"
SUBMIT = f"/fal/queue/{APP}"
SMALL = {"prompt": "a cat", "image_size": {"width": 256, "height": 272}, "seed": 5}


def finished(client: httpx.Client, submitted: dict[str, Any]) -> dict[str, Any]:
    """Ask until a request is completed."""
    status: dict[str, Any] = {}

    def is_completed() -> bool:
        status.update(client.get(submitted["status_url"], params={"logs": "1"}).json())
        return bool(status["status"] == "COMPLETED")

    wait_until(is_completed)
    return status
