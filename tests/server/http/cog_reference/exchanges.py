"""The requests that both servers are asked, and what of their answers is compared."""

import json
import re
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ANSWERS = Path(__file__).with_name("answers.json")
JSON = {"Content-Type": "application/json"}
ASYNC = {"Prefer": "respond-async"}
TEXTS = ("msg", "error", "logs", "started_at", "completed_at")  # worded by each server in its own way


@dataclass(frozen=True)
class Asked:
    """One request; `body` is sent as it is when it is text."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=lambda: JSON)


def predict(**sent: Any) -> Asked:
    return Asked("POST", "/predictions", {"input": {"prompt": "a", "megapixels": "0.25"} | sent})


ALONE = {
    "succeeded": predict(seed=5),
    "png": predict(output_format="png", output_quality=0),
    "jpg": predict(output_format="jpg"),
    "four": predict(num_outputs=4),
    "seed is null": predict(seed=None),
    "unknown fields": Asked("POST", "/predictions", {"input": {"prompt": "a", "x": 1}, "y": 2, "id": "mine"}),
    "failed": predict(prompt="generation_failed"),
    "put": Asked("PUT", "/predictions/p1", {"input": {"prompt": "a"}}),
    "put again": Asked("PUT", "/predictions/p1", {"input": {"prompt": "a"}, "id": "p1"}),
    "put another id": Asked("PUT", "/predictions/p1", {"input": {"prompt": "a"}, "id": "p2"}),
    "put nothing": Asked("PUT", "/predictions/p1", {"input": {}}),
    "no input": Asked("POST", "/predictions", {}),
    "null input": Asked("POST", "/predictions", {"input": None}),
    "prompt outside": Asked("POST", "/predictions", {"prompt": "a"}),
    "input is text": Asked("POST", "/predictions", {"input": "a"}),
    "prompt is a number": predict(prompt=5),
    "too many": predict(num_outputs=9),
    "none": predict(num_outputs=0),
    "unknown ratio": predict(aspect_ratio="7:1"),
    "unknown format": predict(output_format="gif"),
    "too good": predict(output_quality=101),
    "megapixels is a number": predict(megapixels=1),
    "steps is text": predict(num_inference_steps="4"),
    "no steps": predict(num_inference_steps=0),
    "not JSON": Asked("POST", "/predictions", "{"),
    "nothing sent": Asked("POST", "/predictions", ""),
    "another type": Asked("POST", "/predictions", "{}", {"Content-Type": "text/plain"}),
    "stream": Asked(
        "POST", "/predictions", {"input": {"prompt": "a"}}, JSON | {"Accept": "text/event-stream"}
    ),
    "cancel nothing": Asked("POST", "/predictions/nobody/cancel"),
    "poll": Asked("GET", "/predictions/p1"),
    "index": Asked("GET", "/"),
    "head": Asked("HEAD", "/"),
    "health": Asked("GET", "/health-check"),
}
LOADING = {
    "loading: predict": predict(prompt="not_ready"),
    "loading: health": Asked("GET", "/health-check"),
}
WAIT = Asked("PUT", "/predictions/running", {"input": {"prompt": "wait", "seed": 7, "megapixels": "0.25"}})
WHILE_IT_RUNS = {
    "running: overloaded": predict(prompt="overloaded"),
    "running: cancel": Asked("POST", "/predictions/running/cancel"),
}


def ask(client: httpx.Client, asked: Asked) -> dict[str, Any]:
    """Send one request; return what of its answer is compared."""
    content = asked.body if asked.body is None or isinstance(asked.body, str) else json.dumps(asked.body)
    answer = client.request(asked.method, asked.path, content=content, headers=asked.headers)
    kind = answer.headers.get("content-type", "").partition(";")[0]
    body: Any = "<text>"
    if kind == "application/json" and answer.content:
        body = without_what_differs(answer.json())
    return {"status": answer.status_code, "type": kind, "body": body}


def ask_while_it_runs(client: httpx.Client) -> dict[str, Any]:
    """Put a prediction that waits twice: the one that runs does not answer. Ask beside it, and cancel it."""
    with ThreadPoolExecutor(2) as threads:
        both = {threads.submit(ask, client, WAIT) for _ in range(2)}
        ((put,), (running,)) = wait(both, return_when=FIRST_COMPLETED)
        answers = {name: ask(client, asked) for name, asked in WHILE_IT_RUNS.items()}
        return answers | {"running: put": put.result(), "running: cancelled": running.result()}


def without_what_differs(value: Any, name: str = "") -> Any:
    """Return `value` with texts, times, drawn numbers and pictures as their kinds."""
    if name == "version":
        return "<versions>"
    if isinstance(value, dict):
        return {key: without_what_differs(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_what_differs(inner, name) for inner in value]
    if name in TEXTS and isinstance(value, str):
        return "<text>"
    if isinstance(value, float):
        return "<number>"
    if isinstance(value, str):
        value = re.sub(r"^pred_[0-9a-f]{16}$", "<id>", value)
        return re.sub(r"^(data:image/\w+;base64,).*", r"\1", value, flags=re.DOTALL)
    return value
