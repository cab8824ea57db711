"""A worker that answers every picture at once with the same bytes: what is left is the front end."""

import random
import socket
import sys

from server.costs import CostTable
from server.generation import Image, ModelInfo, Timings
from server.protocol import Done, Ready, Start, Stop, Submit
from server.worker.connection import Connection

PICTURE = random.Random(0).randbytes(100_000)  # as large as a picture of 256x256 with much in it
MODEL = ModelInfo(
    name="instant",
    digest="",
    device="none",
    dtype="none",
    numerics="exact",
    quantize="none",
    guidance_embed=False,
    default_width=256,
    default_height=256,
    default_steps=4,
    max_steps=4,
    default_sequence_length=128,
)


def main() -> None:
    connection = Connection(socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1])))
    messages = connection.messages()
    assert isinstance(next(messages), Start)
    connection.send(Ready(model=MODEL, costs=CostTable(decode_pixel_s=1e-12)))
    for message in messages:
        match message:
            case Submit(image=request):
                image = Image(
                    data=PICTURE,
                    content_type="image/png",
                    width=request.width,
                    height=request.height,
                    seed=request.seed,
                    timings=Timings(device_s=1e-6),
                )
                connection.send(Done(id=request.id, image=image))
            case Stop():
                return


if __name__ == "__main__":
    main()
