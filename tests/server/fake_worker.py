"""A worker without a model: it speaks the real protocol and misbehaves as the prompt asks.

Prompts: `sleep S`, `step S` (the same after a step that is over), `die`, `fail`, `hang`, `garbage`,
`oversized`, `other id`, `twice`, `die once PATH`; `half` tells of two steps and of no end;
`show` tells of two steps, and of a preview between them where one is asked for;
`late S` with a deadline is dropped for it, after a step, just when a later one comes in, else it sleeps;
`meet PATH` stays outside of any step, and is answered where the path exists and four such pictures are in
hand at once.
The model `refused` is none, `stillborn` kills, `after PATH` is loaded when the path exists, `picky` takes no
adapter.
An adapter's file says what it does: `refuse`, `die`, else it is taken; its digest is what it says.
A picture's bytes name its id, seed and size, and what it starts from, so that a mix-up shows.
"""

import os
import socket
import sys
import threading
import time
import zlib
from pathlib import Path

import msgspec

from server.costs import CostTable, StepKind
from server.generation import AdapterInfo, Image, ImageRequest, Preview, Timings
from server.protocol import (
    AdapterFile,
    AdapterLoaded,
    AdapterRefused,
    Cancel,
    Done,
    DropAdapter,
    Failed,
    Fatal,
    LoadAdapter,
    Previewed,
    Ready,
    Revise,
    Start,
    Stepped,
    Stepping,
    Stop,
    Submit,
)
from server.worker.connection import Connection
from tests.server.models import MODEL

MEETING = threading.Barrier(4)
COSTS = CostTable(decode_pixel_s=0.01 / 256**2)


def picture(request: ImageRequest) -> Image:
    begun = f" from {zlib.crc32(request.source.pixels)}" if request.source else ""
    adapters = "".join(f" {each.digest} {each.scale:g}" for each in request.adapters)
    data = f"{request.id} seed {request.seed} {request.width}x{request.height}{begun}{adapters}".encode()
    return Image(
        data=data,
        content_type="image/png",
        width=request.width,
        height=request.height,
        seed=request.seed,
        timings=Timings(device_s=0.01, denoise_s=0.01, total_s=0.01),
    )


def load(file: AdapterFile, model: str) -> AdapterLoaded | AdapterRefused:
    text = Path(file.path).read_text()
    if text == "die":
        os._exit(1)
    sys.stderr.write(f"loaded {file.name} {text}\n")
    sys.stderr.flush()
    if text == "refuse" or model == "picky":
        return AdapterRefused(name=file.name, reason="it was asked to refuse")
    return AdapterLoaded(adapter=AdapterInfo(name=file.name, digest=text, size_bytes=len(text)))


def end_step(connection: Connection) -> None:
    lane = threading.get_ident()
    connection.send(Stepped(kind=StepKind.DECODE, lane=lane, images=1, tokens=256, seconds=0.01))


def answer(connection: Connection, end: socket.socket, request: ImageRequest, cancelled: set[str]) -> None:
    word, _, rest = request.prompt.partition(" ")
    if word != "meet":
        connection.send(Stepping(lane=threading.get_ident(), ids=[request.id]))
    match word:
        case "meet":
            if not Path(rest).exists():
                return
            MEETING.wait(30)
        case "sleep":
            time.sleep(float(rest))
        case "step":
            end_step(connection)
            time.sleep(float(rest))
        case "die":
            marker = Path(rest.removeprefix("once ")) if rest else None
            if marker is None or not marker.exists():
                if marker is not None:
                    marker.touch()
                os._exit(1)
            time.sleep(0.5)
        case "hang":
            threading.Event().wait()  # in its lane, which nobody else gets
        case "half":
            for _ in range(2):
                connection.send(Stepping(lane=threading.get_ident(), ids=[request.id]))
                connection.send(
                    Stepped(kind="denoise", lane=threading.get_ident(), images=1, tokens=256, seconds=0.1)
                )
            return
        case "show":
            for step in (1, 2):
                lane = threading.get_ident()
                connection.send(Stepping(lane=lane, ids=[request.id]))
                connection.send(Stepped(kind=StepKind.DENOISE, lane=lane, images=1, tokens=256, seconds=0.1))
                if step in request.previews:
                    index = request.previews.index(step)
                    preview = Preview(index=index, step=step, data=b"soon", content_type="image/png")
                    connection.send(Previewed(id=request.id, preview=preview))
        case "late" if request.deadline_s is not None:
            end_step(connection)
            return
        case "late":
            time.sleep(float(rest or 0))
        case "garbage":
            end.sendall(b"\x00\x00\x00\x05nonse")
            return
        case "oversized":
            end.sendall(b"\xff\xff\xff\xff")
            return
        case "fail":
            end_step(connection)
            failed = Failed(
                id=request.id, code="generation_failed", message="it was asked to fail", device_s=0.02
            )
            connection.send(failed)
            return
        case "other":
            connection.send(Done(id="another/0", image=picture(request)))
        case "twice":
            connection.send(Done(id=request.id, image=picture(request)))
    if word not in ("meet", "step", "show"):
        end_step(connection)
    if request.id not in cancelled:
        connection.send(Done(id=request.id, image=picture(request)))


def main() -> None:
    end = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
    connection = Connection(end)
    messages = connection.messages()
    start = next(messages)
    assert isinstance(start, Start)
    if start.model == "refused":
        connection.send(Fatal(message="the checkpoint is bad"))
        return
    if start.model.startswith("after "):
        while not Path(start.model.removeprefix("after ")).exists():
            time.sleep(0.01)
    if start.model == "stillborn":
        os._exit(1)
    device = "cpu" if start.device == "auto" else start.device
    answers = [load(file, start.model) for file in start.adapters]
    adapters = tuple(each.adapter for each in answers if isinstance(each, AdapterLoaded))
    model = msgspec.structs.replace(MODEL, device=device, adapters=adapters)
    connection.send(Ready(model=model, costs=COSTS))
    cancelled: set[str] = set()
    late: set[str] = set()
    for message in messages:
        match message:
            case Submit(image=request):
                if request.prompt.startswith("late") and request.deadline_s is not None:
                    late.add(request.id)
                arguments = (connection, end, request, cancelled)
                threading.Thread(target=answer, args=arguments, daemon=True).start()
            case Revise(id=image_id, priority=priority, deadline_s=deadline_s):
                sys.stderr.write(f"revised {image_id} {priority} {deadline_s}\n")
                sys.stderr.flush()
                if image_id in late:
                    late.remove(image_id)
                    connection.send(Failed(id=image_id, code="deadline_exceeded", message="too late"))
            case Cancel(id=image_id):
                cancelled.add(image_id)
                connection.send(Failed(id=image_id, code="cancelled", message="forgotten", device_s=0.03))
                sys.stderr.write(f"cancelled {image_id}\n")
                sys.stderr.flush()
            case LoadAdapter(file=file):
                connection.send(load(file, start.model))
            case DropAdapter(digest=digest):
                sys.stderr.write(f"dropped {digest}\n")
                sys.stderr.flush()
            case Stop():
                return


if __name__ == "__main__":
    main()
