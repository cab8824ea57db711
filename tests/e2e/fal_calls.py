"""Run by `test_fal`, since fal-client reads its hosts when it is imported: prints what came of its calls."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import fal_client
import httpx

from tests.server.decoder.pictures import file_of, gradient

APP = "fal-ai/flux/schnell"
EDIT = "fal-ai/flux/dev/image-to-image"
PICTURE = fal_client.encode(file_of(gradient(256, 272)), "image/png")
ROOM_S = 0.4  # after which a full queue has room again
SMALL: dict[str, Any] = {
    "prompt": "a red circle",
    "image_size": {"width": 256, "height": 272},
    "num_inference_steps": 1,
    "seed": 5,
}
LONG: dict[str, Any] = {
    "prompt": "a tree",
    "image_size": "square_hd",
    "num_images": 4,
    "num_inference_steps": 12,
}


def shape(output: dict[str, Any]) -> list[Any]:
    """What an output is, with the bytes that its addresses lead to."""
    addresses = [image["url"] for image in output["images"]]
    kinds = [
        httpx.get(each).content[:3].hex() if each.startswith("https") else each[:23] for each in addresses
    ]
    return [output["seed"], output["images"][0]["width"], output["images"][0]["height"], kinds]


def refusal(call: Callable[[], object]) -> list[Any]:
    """How a call fails."""
    try:
        call()
    except fal_client.FalClientHTTPError as error:
        return [error.status_code, error.error_type, str(error)]
    return []


def queued() -> dict[str, Any]:
    """A request in the queue, by its handle and by its id."""
    handle = fal_client.submit(APP, SMALL, priority="low", start_timeout=60)
    events = [type(event).__name__ for event in handle.iter_events(with_logs=True)]
    status = fal_client.status(APP, handle.request_id, with_logs=True)
    assert isinstance(status, fal_client.Completed)
    updates: list[str] = []
    subscribed = fal_client.subscribe(
        APP, SMALL, with_logs=True, on_queue_update=lambda status: updates.append(type(status).__name__)
    )
    return {
        "last": events[-1],
        "logs": [line["message"] for line in status.logs or []],
        "seconds": status.metrics["inference_time"],
        "result": shape(fal_client.result(APP, handle.request_id)),
        "cancelled late": refusal(lambda: fal_client.cancel(APP, handle.request_id)),
        "updates": updates[-1],
        "subscribed": shape(subscribed),
    }


def cancelled() -> dict[str, Any]:
    """A request that is ended while others wait for it."""
    handle = fal_client.submit(APP, LONG)
    threading.Timer(0.2, handle.cancel).start()
    return {"result": refusal(handle.get), "status": vars(handle.status())["error_type"]}


def overloaded() -> bool:
    """A full queue: the client tries again until there is room."""
    first, second = fal_client.submit(APP, LONG), fal_client.submit(APP, LONG)
    began = time.monotonic()
    threading.Timer(ROOM_S, first.cancel).start()
    third = fal_client.submit(APP, SMALL)
    had_waited = time.monotonic() - began >= ROOM_S
    second.cancel()
    third.get()
    return had_waited


async def asynchronous() -> list[Any]:
    return shape(await fal_client.run_async(APP, SMALL))


def main(webhook_url: str) -> None:
    early = fal_client.submit(APP, SMALL)  # the model is still being loaded
    outcomes = {
        "early": shape(early.get()),
        "run": shape(fal_client.run(APP, SMALL | {"num_images": 2, "output_format": "png"})),
        "sync_mode": shape(fal_client.run("fal-ai/flux-1/schnell", SMALL | {"sync_mode": True})),
        "stream": [shape(event) for event in fal_client.stream(APP, SMALL | {"num_inference_steps": 12})],
        "async": asyncio.run(asynchronous()),
        "queued": queued(),
        "cancelled": cancelled(),
        "edited": shape(fal_client.run(EDIT, {"prompt": "a", "image_url": PICTURE, "seed": 5})),
        "edited in the queue": shape(
            fal_client.subscribe(EDIT, {"prompt": "a", "image_url": PICTURE, "seed": 5})
        ),
        "bad": refusal(lambda: fal_client.run(APP, SMALL | {"num_images": 9})),
        "bad in the queue": refusal(lambda: fal_client.submit(APP, {"image_size": "square"})),
        "unknown": refusal(lambda: fal_client.result(APP, "c0ffee")),
        "overloaded": overloaded(),
        "webhook": fal_client.submit(APP, SMALL, webhook_url=webhook_url).request_id,
    }
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
