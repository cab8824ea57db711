"""The transformer's step as recorded graphs: one launch instead of about 800.

At 256x256 a step computes for 9 ms at an H200's rate while the CPU needs about as long to launch its kernels;
at 1024x1024 it is 88 ms, and little is won. A graph belongs to one layout. It is recorded when a layout comes
for the second time, so that the many mixtures of sizes that come once are not; the least recently used go.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.layout import Layout, Shape

LIMIT = 32  # graphs; each keeps its inputs and output, a few MB, and all share the memory between them
REMEMBERED = 512  # layouts seen once

Step = Callable[[Tensor, Tensor, Tensor, Layout], Tensor]  # as `Transformer.forward`

log = logging.getLogger(__name__)


class Recording(Protocol):
    """A computation that runs again, from the same inputs in memory to the same output in memory."""

    @property
    def output(self) -> Tensor:
        """Where its last run has written."""

    def replay(self) -> None:
        """Run it again."""


Recorder = Callable[[Callable[[], Tensor]], Recording]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A recording with the memory that it reads; the layout's tensors must live as long."""

    recording: Recording
    inputs: tuple[Tensor, Tensor, Tensor]
    layout: Layout

    def run(self, *inputs: Tensor) -> Tensor:
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.recording.replay()
        return self.recording.output


class StepGraphs:
    """Runs `step`, by a recording wherever there is one. Not thread-safe: it belongs to the step loop."""

    def __init__(self, step: Step, recorder: Recorder, *, limit: int = LIMIT) -> None:
        self._step = step
        self._recorder = recorder
        self._limit = limit
        self._recorded: OrderedDict[tuple[Shape, ...], _Recorded] = OrderedDict()
        self._seen: OrderedDict[tuple[Shape, ...], None] = OrderedDict()
        self._works = True

    def __len__(self) -> int:
        return len(self._recorded)

    def __call__(self, img: Tensor, txt: Tensor, modulation: Tensor, layout: Layout) -> Tensor:
        """Return what `step` returns; it stays valid until the next call."""
        if (found := self._recorded.get(layout.shapes)) is not None:
            self._recorded.move_to_end(layout.shapes)
            return found.run(img, txt, modulation)
        if self._works and layout.shapes in self._seen:
            self._record(img, txt, modulation, layout)
        self._seen[layout.shapes] = None
        self._seen.move_to_end(layout.shapes)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return self._step(img, txt, modulation, layout)

    def clear(self) -> None:
        """Forget every recording, and with the last one the memory between them."""
        self._recorded.clear()
        self._seen.clear()

    def _record(self, img: Tensor, txt: Tensor, modulation: Tensor, layout: Layout) -> None:
        """Record a layout for the next time; what cannot be recorded runs as it did before."""
        inputs = (img.clone(), txt.clone(), modulation.clone())
        while len(self._recorded) >= self._limit:
            self._recorded.popitem(last=False)
        try:
            recording = self._recorder(lambda: self._step(*inputs, layout))
        except torch.OutOfMemoryError:
            self.clear()
            log.warning("no memory for the graph of %d samples; all graphs are dropped", len(layout.shapes))
        except torch.AcceleratorError:
            raise  # the device itself is lost
        except RuntimeError as failure:
            self._works = False
            log.warning("steps are not recorded as graphs: %s", failure)
        else:
            self._recorded[layout.shapes] = _Recorded(recording, inputs, layout)


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: they run one after another on one stream."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Tensor]) -> Recording:
        """Record `call`, which has run before, so that its kernels are compiled."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = call()
        return _CudaRecording(graph, output)


@dataclass(frozen=True, slots=True)
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    output: Tensor

    def replay(self) -> None:
        self.graph.replay()
