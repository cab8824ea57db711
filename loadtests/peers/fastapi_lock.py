"""A diffusers pipeline behind FastAPI and a lock: `python -m loadtests.peers.fastapi_lock PORT MODEL`."""

import sys
from pathlib import Path
from threading import Lock

import uvicorn
from fastapi import FastAPI, Response

from loadtests.peers.request import Request, generate, load


def main() -> None:
    port, model = int(sys.argv[1]), Path(sys.argv[2])
    pipeline, lock, app = load(model), Lock(), FastAPI()

    @app.post("/v1/generate")
    def answer(request: Request) -> Response:  # in a thread of FastAPI's pool
        with lock:
            (picture,) = generate(pipeline, [request])
        return Response(picture, media_type="image/png")

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
