"""How servers choose what runs next, on a virtual clock: this one's batcher, and the rules of its peers.

A rule takes requests in the order of their arrival and the costs of a device, and returns when each is done
(None: given up). The peers' rules are stated anew from the code of vLLM-Omni 0.30, SGLang 0.5.23 and Triton
2.73; each gets the same costs, no overhead of its own, and the wait and batch size that suit it best.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from loadtests.arrivals import Request
from loadtests.curves import Curve
from server.admission import Admission, Admitted
from server.batcher import Batcher, Entry, Step
from server.costs import Costs, StepKind
from server.errors import Overloaded
from server.generation import GenerationRequest, ModelInfo
from server.router import Load, choose

MOST_TOGETHER: Final = 8  # the batch size that the peers are given
MODEL: Final = ModelInfo(
    name="simulated", digest="", device="", dtype="", numerics="", quantize="", guidance_embed=False,
    default_width=1024, default_height=1024, default_steps=4, max_steps=50, default_sequence_length=256,
)  # fmt: skip
(IMAGE,) = GenerationRequest(
    id="", prompt="", width=1024, height=1024, steps=4, seed=0, max_sequence_length=256
).images()

Finishes = list[float | None]
Rule = Callable[[Sequence[Request], Curve], Finishes]


def alone_s(request: Request, costs: Costs) -> float:
    """Seconds of a request on an idle device."""
    return costs.bill(request.shape, steps=request.steps).alone_s


def least_s(request: Request, costs: Costs) -> float:
    """Device-seconds that no batching can save: the roofline."""
    shape, table = request.shape, costs.table
    text_s = table.text_row_s * shape.passes * shape.txt_rows
    return text_s + request.steps * costs.rows_s(shape) + table.decode_pixel_s * shape.width * shape.height


def one_by_one(requests: Sequence[Request], curve: Curve) -> Finishes:
    """No batching: first come, first served."""
    return _prefix(requests, curve, most=1)


def first_mismatch(requests: Sequence[Request], curve: Curve) -> Finishes:
    """vLLM-Omni and Triton: the head of the queue and those behind it up to the first of another kind."""
    return _prefix(requests, curve, most=MOST_TOGETHER)


def scan_equal(requests: Sequence[Request], curve: Curve) -> Finishes:
    """SGLang: the head of the queue and everything of its kind in the queue, eight at most."""
    return _scan(requests, curve, caps={})


def scan_capped(requests: Sequence[Request], curve: Curve) -> Finishes:
    """SGLang with `--batching-config` written by hand, where someone measured when each size is saturated."""
    costs = Costs.of(curve.table)
    caps = {kind(each): curve.caps.get(each.width, costs.paying_count(each.shape)) for each in requests}
    return _scan(requests, curve, caps=caps)


def kind(request: Request) -> tuple[int, int, int]:
    """What must be equal for the peers to run requests together."""
    return request.width, request.height, request.steps


def _prefix(requests: Sequence[Request], curve: Curve, *, most: int) -> Finishes:
    costs, finishes = Costs.of(curve.table), [0.0] * len(requests)
    now, head = 0.0, 0
    while head < len(requests):
        now = max(now, requests[head].arrived_s)
        end = head + 1
        while (
            end < min(len(requests), head + most)
            and requests[end].arrived_s <= now
            and kind(requests[end]) == kind(requests[head])
        ):
            end += 1
        now += _batch_s(requests[head:end], costs)
        finishes[head:end] = [now] * (end - head)
        head = end
    return list(finishes)


def _scan(requests: Sequence[Request], curve: Curve, *, caps: Mapping[tuple[int, int, int], int]) -> Finishes:
    costs, finishes = Costs.of(curve.table), [0.0] * len(requests)
    waiting: list[int] = []
    now, coming = 0.0, 0
    while waiting or coming < len(requests):
        if not waiting:
            now = max(now, requests[coming].arrived_s)
        while coming < len(requests) and requests[coming].arrived_s <= now:
            waiting.append(coming)
            coming += 1
        wanted = kind(requests[waiting[0]])
        most = caps.get(wanted, MOST_TOGETHER)
        batch = [index for index in waiting if kind(requests[index]) == wanted][:most]
        now += _batch_s([requests[index] for index in batch], costs)
        for index in batch:
            finishes[index] = now
        taken = set(batch)
        waiting = [index for index in waiting if index not in taken]
    return list(finishes)


def _batch_s(batch: Sequence[Request], costs: Costs) -> float:
    """Seconds of a batch that runs from its texts to its pictures without a change."""
    shapes = [request.shape for request in batch]
    steps_s = batch[0].steps * costs.step_s(shapes)
    return costs.encode_s(shapes) + steps_s + sum(costs.decode_s(shape) for shape in shapes)


@dataclass(slots=True)
class Device:
    """A worker on the virtual clock: the server's batcher, and the step that runs."""

    batcher: Batcher
    step: Step | None = None
    done_s: float = 0.0
    in_hand: dict[str, Entry] = field(default_factory=dict)


@dataclass(slots=True)
class Served:
    """What became of each request; `refused` at the door, `dropped` since it could not be done in time."""

    finishes: Finishes
    admitted: dict[int, Admitted] = field(default_factory=dict)
    refused: int = 0
    dropped: int = 0


def ours(requests: Sequence[Request], curve: Curve) -> Finishes:
    """This server on one device, with its door wide open."""
    return serve(requests, curve, max_backlog_s=math.inf).finishes


def serve(requests: Sequence[Request], curve: Curve, *, max_backlog_s: float, devices: int = 1) -> Served:
    """Play requests to the server's own admission, router and batchers."""
    costs, admission = Costs.of(curve.table), Admission(max_backlog_s)
    admission.start_from(curve.table)
    pool = [Device(Batcher(Costs.of(curve.table))) for _ in range(devices)]
    served = Served([None] * len(requests))
    coming = deque(enumerate(requests))
    while coming or any(device.step for device in pool):
        running = [device for device in pool if device.step]
        first = min(running, key=lambda device: device.done_s, default=None)
        if first is None or (coming and coming[0][1].arrived_s <= first.done_s):
            now = coming[0][1].arrived_s
            while coming and coming[0][1].arrived_s <= now:
                number, request = coming.popleft()
                if _admit(number, request, admission, devices, served):
                    _hand_over(number, request, pool, served)
        else:
            now = first.done_s
            _complete(first, admission, served)
        for device in pool:
            if device.step is None and (step := device.batcher.plan(now)):
                device.step, device.done_s = step, now + _step_s(step, costs)
    return served


def _admit(number: int, request: Request, admission: Admission, devices: int, served: Served) -> bool:
    image = msgspec.structs.replace(
        IMAGE,
        width=request.width,
        height=request.height,
        steps=request.steps,
        max_sequence_length=request.txt_rows,
        priority=request.priority,
        key=request.key,
    )
    try:
        (served.admitted[number],) = admission.admit(
            [image], MODEL, workers=devices, deadline_s=request.deadline_s
        )
    except Overloaded:
        served.refused += 1
        return False
    return True


def _complete(device: Device, admission: Admission, served: Served) -> None:
    step, device.step = device.step, None
    assert step is not None, "it was chosen for having one"
    for entry in step.entries:
        admission.progress(served.admitted[int(entry.id)], step.kind)
    for entry in device.batcher.complete(step):
        number = int(entry.id)
        del device.in_hand[entry.id]
        admission.release(served.admitted[number], finished=step.kind is not StepKind.DROP)
        if step.kind is StepKind.DROP:
            served.dropped += 1
        else:
            served.finishes[number] = device.done_s


def _hand_over(number: int, request: Request, pool: Sequence[Device], served: Served) -> None:
    entry = Entry(
        id=str(number),
        width=request.width,
        height=request.height,
        steps=request.steps,
        arrived_s=request.arrived_s,
        txt_rows=request.txt_rows,
        priority=request.priority,
        key=request.key,
        deadline_s=None if request.deadline_s is None else request.arrived_s + request.deadline_s,
    )
    device = pool[0] if len(pool) == 1 else _route(entry, pool, served.admitted)
    device.in_hand[entry.id] = entry
    device.batcher.add(entry)


def _route(entry: Entry, pool: Sequence[Device], admitted: Mapping[int, Admitted]) -> Device:
    loads = [
        Load(
            worker=index,
            backlog_s=sum(admitted[int(number)].left_s for number in device.in_hand),
            sizes=frozenset(each.size for each in device.in_hand.values()),
        )
        for index, device in enumerate(pool)
    ]
    return pool[choose(loads, size=entry.size, saved_s=admitted[int(entry.id)].bill.shared_s)]


def _step_s(step: Step, costs: Costs) -> float:
    shapes = [entry.shape for entry in step.entries]
    match step.kind:
        case StepKind.ENCODE:
            return costs.encode_s(shapes)
        case StepKind.DENOISE:
            return costs.step_s(shapes)
        case StepKind.DECODE:
            return sum(costs.decode_s(shape) for shape in shapes)
        case StepKind.DROP:
            return 0.0
