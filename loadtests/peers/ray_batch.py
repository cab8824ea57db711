"""A diffusers pipeline in Ray Serve with `@serve.batch`: `python -m loadtests.peers.ray_batch PORT MODEL`."""

import signal
import sys
from pathlib import Path

import ray
from fastapi import FastAPI, Response
from ray import serve

from loadtests.peers.request import Request, generate_by_size, load

MAX_BATCH, WAIT_S = 4, 0.05  # as in litserve_batch

app = FastAPI()


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
@serve.ingress(app)
class Flux:
    """One replica; requests that arrive within the wait share a batch."""

    def __init__(self, model: Path) -> None:
        self.pipeline = load(model)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
    async def generate(self, requests: list[Request]) -> list[bytes]:
        return generate_by_size(self.pipeline, requests)

    @app.post("/v1/generate")
    async def answer(self, request: Request) -> Response:
        return Response(await self.generate(request), media_type="image/png")

    @app.get("/readyz")
    def ready(self) -> str:
        return "ready"


def main() -> None:
    port, model = int(sys.argv[1]), Path(sys.argv[2])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "2"}},  # Ray sets 1
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": None})
    serve.run(Flux.bind(model), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
