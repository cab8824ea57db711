"""A worker process: `python -m server.worker --fd N`, started by the supervisor on its socket pair.

Loads the model that the first message names, learns what steps cost, says that it is ready, and runs the step
loop until it is told to stop or the front end is gone.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final, cast

import structlog
import torch

from kernels.dispatch import KernelsName
from model.checkpoint import CheckpointError
from model.device import (
    DtypeName,
    MemoryName,
    NumericsName,
    choose_device,
    choose_dtype,
    choose_memory,
    choose_numerics,
)
from model.info import PipelineInfo
from model.lending import Memory
from model.lora import Adapter, load_adapter
from model.pipeline import Pipeline
from model.preview import Previewer
from model.progress import loading_bar
from model.quantization import QuantizeName
from model.verify import has_sums, verify
from server import logs
from server.batcher import Lane
from server.costs import Costs, Shape
from server.generation import AdapterInfo, ModelInfo
from server.inherited import arguments, take_end
from server.protocol import AdapterFile, AdapterLoaded, Fatal, LoadAdapter, Ready, Start
from server.worker.adapters import Adapters
from server.worker.calibrate import calibrated, keep
from server.worker.connection import Connection
from server.worker.loop import BESIDE, IN_TURN, Loop

EXIT_CHECKPOINT: Final = 3
EXIT_PROTOCOL: Final = 4
EXIT_DEVICE: Final = 5
SCHNELL_MAX_STEPS: Final = 12
DEV_MAX_STEPS: Final = 50

log = structlog.get_logger(__name__)


def main() -> int:
    """Serve until the end; the exit status tells the supervisor whether a restart makes sense."""
    connection = Connection(take_end(arguments("python -m server.worker").parse_args().fd))
    messages = connection.messages()
    start = next(messages, None)
    if not isinstance(start, Start):
        return EXIT_PROTOCOL
    logs.configure(log_format=start.log_format, log_level=start.log_level)
    try:
        pipeline = _load(start)
        adapters = Adapters(partial(_load_adapter, pipeline), start.adapters_limit_bytes)
        served = tuple(_served(adapters, start.adapters))
    except (CheckpointError, ValueError, OSError) as error:
        connection.send(Fatal(message=str(error)))
        return EXIT_CHECKPOINT
    data_dir = Path(start.data_dir)
    key, table = calibrated(pipeline, kernels=start.kernels, data_dir=data_dir, budget_s=start.calibration_s)
    costs = Costs.of(table)
    loop = Loop(
        pipeline=pipeline,
        previewer=Previewer.fit(pipeline.autoencoder),
        send=connection.send,
        costs=costs,
        adapters=adapters,
        lanes=_lanes(start),
    )
    threading.Thread(target=_receive, args=(connection, loop), name="reader", daemon=True).start()
    model = _describe(pipeline.info, costs, served, max_steps=start.max_steps)
    connection.send(Ready(model=model, costs=table))
    try:
        loop.run()
    except torch.AcceleratorError:
        log.exception("device_lost")
        logs.flush()
        os._exit(EXIT_DEVICE)  # the interpreter's own end would wait for a device that does not answer
    if start.calibration_s:
        keep(costs.refined(), key, data_dir)
    return 0


def _load(start: Start) -> Pipeline:
    path = Path(start.model)
    if start.verify_weights == "always" or (start.verify_weights == "auto" and has_sums(path)):
        verify(path)
    device = choose_device(start.device)
    if start.threads:
        torch.set_num_threads(start.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32; bfloat16 is the fast path
    with loading_bar() as progress:
        return Pipeline.load(
            path,
            device=device,
            dtype=choose_dtype(cast(DtypeName, start.dtype), device),
            numerics=choose_numerics(cast(NumericsName, start.numerics), device),
            kernels=cast(KernelsName, start.kernels),
            quantize=cast(QuantizeName, start.quantize),
            memory=choose_memory(cast(MemoryName, start.memory), device),
            conditioning_cache_bytes=start.conditioning_cache_bytes,
            allow_pickle=start.allow_pickle,
            progress=progress,
        )


def _served(adapters: Adapters, files: Sequence[AdapterFile]) -> Iterator[AdapterInfo]:
    """Load what is served from the start; raises `CheckpointError` for what the settings have.

    What was put may have been put for another model or with more room; the server starts without it.
    """
    for file in files:
        if file.required:
            yield adapters.add(file)
        elif isinstance(answer := adapters.answer(LoadAdapter(file=file)), AdapterLoaded):
            yield answer.adapter


def _load_adapter(pipeline: Pipeline, path: Path, limit_bytes: int) -> Adapter:
    """Load an adapter beside the steps, which may use it when this returns.

    On the device's default stream, whose memory is used again when an adapter goes.
    """
    adapter = load_adapter(path, pipeline.transformer, limit_bytes=limit_bytes)
    pipeline.synchronize()
    return adapter


def _describe(
    info: PipelineInfo, costs: Costs, adapters: tuple[AdapterInfo, ...], *, max_steps: int
) -> ModelInfo:
    shape = Shape(info.default_width, info.default_height, info.default_sequence_length)
    image_s = costs.bill(shape, steps=info.default_steps).alone_s
    log.info("model_loaded", model=info.name, device=info.device, dtype=info.dtype, image_s=round(image_s, 4))
    return ModelInfo(
        **asdict(info),
        max_steps=max_steps or (DEV_MAX_STEPS if info.guidance_embed else SCHNELL_MAX_STEPS),
        adapters=adapters,
    )


def _lanes(start: Start) -> Sequence[Lane]:
    """Stages run at once where all weights are on the device anyway, and memory is not what is short."""
    memory = choose_memory(cast(MemoryName, start.memory), choose_device(start.device))
    return BESIDE if memory is Memory.FULL else IN_TURN


def _receive(connection: Connection, loop: Loop) -> None:
    """Feed the loop. When the front end is gone or talks nonsense there is nobody left to work for, and who
    does not understand it any more would sit there deaf."""
    try:
        for message in connection.messages():
            loop.receive(message)
    except Exception:
        log.exception("connection_lost")
        logs.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
