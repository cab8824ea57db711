"""Recorded steps: when they are recorded, that they see new inputs, and that their number is bounded."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model.config import TransformerConfig
from model.graphs import CudaRecorder, Recording, StepGraphs
from model.layout import Layout, Numerics, Shape
from model.transformer import Transformer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = TransformerConfig(
    hidden_size=64,
    num_heads=2,
    mlp_size=128,
    depth_double=1,
    depth_single=1,
    text_width=32,
    pooled_width=24,
    rope_axes=(4, 14, 14),
)
SMALL, LARGE, WIDE = Shape(3, 2, 2), Shape(3, 3, 3), Shape(5, 2, 4)


@dataclass
class Rerun:
    """What a CUDA graph is to its memory: run again, it reads the same inputs and writes the same output."""

    call: Callable[[], Tensor]
    output: Tensor

    def replay(self) -> None:
        self.output.copy_(self.call())


class Recorder:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, call: Callable[[], Tensor]) -> Recording:
        self.count += 1
        return Rerun(call, call().clone())


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).to(DEVICE)


def inputs(*shapes: Shape, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Layout]:
    torch.manual_seed(seed)
    layout = Layout.build(shapes, config=CONFIG, numerics=Numerics.FAST, device=DEVICE)
    img_rows, txt_rows = sum(shape.img_rows for shape in shapes), sum(shape.txt_rows for shape in shapes)
    modulation = torch.randn(len(shapes), (12 + 3 + 2) * 64)
    return *(x.to(DEVICE) for x in (torch.randn(img_rows, 64), torch.randn(txt_rows, 64), modulation)), layout


@torch.inference_mode()
def test_a_layout_is_recorded_when_it_comes_for_the_second_time(transformer: Transformer) -> None:
    recorder = Recorder()
    graphs = StepGraphs(transformer, recorder)
    counts = []
    for shapes in ([SMALL], [LARGE], [SMALL], [SMALL, LARGE], [SMALL], [LARGE]):
        graphs(*inputs(*shapes))
        counts.append(recorder.count)
    assert counts == [0, 0, 1, 1, 1, 2]
    assert len(graphs) == 2


@torch.inference_mode()
def test_a_recording_computes_from_what_it_is_given(transformer: Transformer) -> None:
    graphs = StepGraphs(transformer, Recorder())
    for seed in range(4):
        given = inputs(SMALL, WIDE, seed=seed)
        assert torch.equal(graphs(*given), transformer(*given))


@torch.inference_mode()
def test_the_least_recently_used_recording_goes(transformer: Transformer) -> None:
    recorder = Recorder()
    graphs = StepGraphs(transformer, recorder, limit=2)
    for shape in (SMALL, SMALL, LARGE, LARGE, SMALL, WIDE, WIDE):
        graphs(*inputs(shape))
    assert (len(graphs), recorder.count) == (2, 3)
    graphs(*inputs(SMALL))
    assert recorder.count == 3  # it was used after LARGE, which is what has gone
    graphs(*inputs(LARGE))
    assert recorder.count == 4


def failing(error: Exception) -> Callable[[Callable[[], Tensor]], Recording]:
    def recorder(call: Callable[[], Tensor]) -> Recording:
        raise error

    return recorder


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("full"),
            "no memory for the graph of 1 samples; all graphs are dropped",
        ),
        (RuntimeError("not permitted"), "steps are not recorded as graphs: not permitted"),
    ],
)
@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_before(
    transformer: Transformer, error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = StepGraphs(transformer, failing(error))
    for seed in range(2):
        given = inputs(SMALL, seed=seed)
        assert torch.equal(graphs(*given), transformer(*given))
    assert caplog.messages == [message]
    assert len(graphs) == 0


@torch.inference_mode()
def test_a_lost_device_is_not_hidden(transformer: Transformer) -> None:
    graphs = StepGraphs(transformer, failing(torch.AcceleratorError("lost")))
    graphs(*inputs(SMALL))
    with pytest.raises(torch.AcceleratorError, match="lost"):
        graphs(*inputs(SMALL))


@pytest.mark.gpu
@torch.inference_mode()
def test_cuda_graphs_compute_what_the_step_computes(transformer: Transformer) -> None:
    graphs = StepGraphs(transformer, CudaRecorder(), limit=2)
    for seed in range(3):
        for shapes in ([SMALL], [SMALL, WIDE], [LARGE], [SMALL]):
            given = inputs(*shapes, seed=seed)
            assert torch.equal(graphs(*given).clone(), transformer(*given))
