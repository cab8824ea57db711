"""A diffusers pipeline in LitServe, which batches: `python -m loadtests.peers.litserve_batch PORT MODEL`."""

import sys
from pathlib import Path

import litserve
from fastapi import Response

from loadtests.peers.request import Request, generate_by_size, load

MAX_BATCH, WAIT_S = 4, 0.05  # larger batches gain nothing on two cores; the wait is a fifth of a picture


class Flux(litserve.LitAPI):
    """One worker process; requests that arrive within the wait share a batch."""

    def __init__(self, model: Path) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S, api_path="/v1/generate")
        self.path = model

    def setup(self, device: str) -> None:
        self.pipeline = load(self.path)

    def decode_request(self, request: Request) -> Request:
        return request

    def batch(self, inputs: list[Request]) -> list[Request]:
        return inputs

    def predict(self, inputs: list[Request]) -> list[bytes]:
        return generate_by_size(self.pipeline, inputs)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


def main() -> None:
    port, model = int(sys.argv[1]), Path(sys.argv[2])
    server = litserve.LitServer(
        Flux(model), accelerator="auto", timeout=False, healthcheck_path="/readyz", workers_per_device=1
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
