"""Measuring what steps cost: on a pipeline that takes exactly what a table says, and on the embedded one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from model.conditioning import Conditioning, ConditioningCache, Prompt
from model.info import PipelineInfo
from model.layout import Numerics
from model.pipeline import Pipeline, Pixels
from model.source import Source
from server.costs import Costs, CostTable, Shape
from server.settings import EMBEDDED_MODEL
from server.worker.calibrate import calibrated, cost_key, keep, kept_at, load, measure
from tests.server.worker.pipelines import INFO as FAKE

INFO = replace(FAKE, default_width=256, default_height=256, default_steps=4, default_sequence_length=64)
TABLE = CostTable(
    step_fixed_s=0.004,
    row_s=2e-5,
    pair_s=1e-9,
    text_fixed_s=0.003,
    text_row_s=1e-5,
    decode_pixel_s=3e-8,
    source_pixel_s=1e-8,
)


@dataclass
class TimedPipeline:
    """Takes on its own clock what a table says, and a second more for every shape that it sees first."""

    table: CostTable = TABLE
    info: PipelineInfo = INFO
    most_rows: int = 10**9
    now: float = 0.0
    conditioning: ConditioningCache = field(default_factory=lambda: ConditioningCache(0))
    seen: set[object] = field(default_factory=set)

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        shapes = [Shape(256, 256, prompt.max_sequence_length) for prompt in prompts]
        self._take(Costs.of(self.table).encode_s(shapes), ("encode", len(prompts)))
        return [cast(Conditioning, prompt) for prompt in prompts]

    def start(
        self, *, conditioning: Conditioning, width: int, height: int, source: Source | None, **_: Any
    ) -> Shape:
        shape = Shape(width, height, cast(Prompt, conditioning).max_sequence_length)
        if source is not None:
            started = shape._replace(has_source=True)
            self._take(Costs.of(self.table).source_s(started), ("source", width, height))
        return shape

    def denoise_step(self, samples: Sequence[Shape]) -> None:
        if sum(sample.rows for sample in samples) > self.most_rows:
            raise torch.OutOfMemoryError("too many at once")
        self._take(Costs.of(self.table).step_s(samples), ("denoise", *samples))

    def decode(self, samples: Sequence[Shape]) -> list[Pixels]:
        self._take(sum(Costs.of(self.table).decode_s(sample) for sample in samples), ("decode", *samples))
        return []

    def synchronize(self) -> None:
        pass

    def generate(self, *_: Any, **__: Any) -> None:
        self.now += 0.5

    def _take(self, seconds: float, what: object) -> None:
        self.now += seconds if what in self.seen else seconds + 1
        self.seen.add(what)


def measured(pipeline: TimedPipeline, budget_s: float) -> CostTable:
    return measure(cast(Pipeline, pipeline), budget_s=budget_s, clock=lambda: pipeline.now)


def test_what_is_measured_is_what_the_device_takes() -> None:
    table = measured(TimedPipeline(), budget_s=100.0)
    names = ("step_fixed_s", "row_s", "pair_s", "text_fixed_s", "text_row_s", "decode_pixel_s")
    for name in (*names, "source_pixel_s"):
        assert getattr(table, name) == pytest.approx(getattr(TABLE, name), rel=1e-3), name
    assert table.mixing == 1.0


def test_a_launch_floor_and_a_cost_of_mixing_are_found() -> None:
    truth = CostTable(step_floor_s=0.05, row_s=2e-5, mixing=1.3, text_row_s=1e-5, decode_pixel_s=3e-8)
    table = measured(TimedPipeline(truth), budget_s=100.0)
    assert table.step_floor_s == pytest.approx(0.05, rel=1e-3)
    assert table.mixing == pytest.approx(1.3, rel=1e-3)


@pytest.mark.parametrize("slower", [1, 20, 400])
def test_a_slow_device_is_measured_less_and_the_budget_kept(slower: int) -> None:
    truth = CostTable(row_s=slower * 2e-6, text_row_s=slower * 1e-6, decode_pixel_s=slower * 3e-9)
    pipeline = TimedPipeline(truth)
    pipeline.seen = _Everything()
    table = measured(pipeline, budget_s=10.0)
    assert table.row_s == pytest.approx(truth.row_s, rel=0.01)
    one_picture_s = Costs.of(truth).bill(Shape(256, 256, 64), steps=1).alone_s
    assert pipeline.now <= 10.0 + 5 * one_picture_s


def test_without_a_budget_one_and_two_pictures_are_timed() -> None:
    pipeline = TimedPipeline()
    table = measured(pipeline, budget_s=0.0)
    shape = Shape(256, 256, 64)
    steps = {("denoise", shape), ("denoise", shape, shape)}
    assert pipeline.seen == {("encode", 1), ("decode", shape), *steps}
    for count in (1, 2, 8):
        predicted_s, really_s = (Costs.of(each).step_s([shape] * count) for each in (table, TABLE))
        assert predicted_s == pytest.approx(really_s)
    assert Costs.of(table).decode_s(Shape(512, 512, 64)) == pytest.approx(4 * Costs.of(TABLE).decode_s(shape))


def test_memory_that_does_not_hold_the_larger_steps_ends_nothing() -> None:
    table = measured(TimedPipeline(most_rows=3000), budget_s=100.0)
    assert table.row_s == pytest.approx(TABLE.row_s, rel=1e-3)


def test_memory_that_does_not_hold_one_picture_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measured(TimedPipeline(most_rows=100), budget_s=100.0)


def ready(folder: Path, *, budget_s: float = 5.0, **changes: Any) -> tuple[TimedPipeline, CostTable]:
    """Start a worker whose pipeline has `changes`; return it and its table."""
    pipeline = TimedPipeline(info=replace(INFO, **changes))
    _, table = calibrated(cast(Pipeline, pipeline), kernels="auto", data_dir=folder, budget_s=budget_s)
    return pipeline, table


def test_a_table_is_measured_once_and_kept_for_the_next_start(tmp_path: Path) -> None:
    first, table = ready(tmp_path)
    second, again = ready(tmp_path)
    assert first.seen
    assert not second.seen
    assert second.now == 0.5, "still warmed up"
    assert again == table


@pytest.mark.parametrize("change", [{"digest": "e"}, {"dtype": "bfloat16"}, {"numerics": "fast"}])
def test_another_model_or_another_way_to_run_it_is_measured_anew(
    tmp_path: Path, change: dict[str, str]
) -> None:
    ready(tmp_path)
    other, _ = ready(tmp_path, **change)
    assert other.seen
    assert len(list((tmp_path / "costs").iterdir())) == 2


def test_a_quick_table_is_not_kept(tmp_path: Path) -> None:
    ready(tmp_path, budget_s=0.0)
    assert not list(tmp_path.iterdir())


def test_what_was_learned_is_kept(tmp_path: Path) -> None:
    key = cost_key(INFO, kernels="auto")
    learned = CostTable(row_s=1e-4, ratios={"denoise 256x256": 1.5}, max_rows=5000)
    keep(learned, key, tmp_path)
    assert load(kept_at(tmp_path, key), key) == learned
    assert [path.suffix for path in (tmp_path / "costs").iterdir()] == [".json"]


@pytest.mark.parametrize("content", ["", "{", '{"key": 1}', '{"table": {"row_s": -1}}', "\udcff"])
def test_a_file_that_is_no_table_is_measured_anew(tmp_path: Path, content: str) -> None:
    path = kept_at(tmp_path, cost_key(INFO, kernels="auto"))
    path.parent.mkdir()
    path.write_bytes(content.encode(errors="surrogateescape"))
    pipeline, table = ready(tmp_path)
    assert pipeline.seen
    assert load(path, cost_key(INFO, kernels="auto")) == table


def test_a_table_of_another_device_under_the_same_name_is_not_used(tmp_path: Path) -> None:
    key = cost_key(INFO, kernels="auto")
    keep(TABLE, key, tmp_path)
    moved = kept_at(tmp_path, cost_key(INFO, kernels="triton"))
    kept_at(tmp_path, key).rename(moved)
    assert load(moved, cost_key(INFO, kernels="triton")) is None


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path: Path) -> None:
    (tmp_path / "costs").write_text("a file where the folder should be")
    pipeline, _ = ready(tmp_path)
    assert pipeline.seen


def test_the_embedded_model_is_measured_within_its_budget_and_predicted_well() -> None:
    pipeline = Pipeline.load(
        EMBEDDED_MODEL, device=torch.device("cpu"), dtype=torch.float32, numerics=Numerics.EXACT
    )
    table = measure(pipeline, budget_s=2.0)
    bill = Costs.of(table).bill(Shape(256, 256, pipeline.info.default_sequence_length), steps=4)
    assert 0 < bill.text_s < bill.total_s
    assert 0 < bill.decode_s < bill.total_s
    assert 0 < bill.step_s <= bill.alone_step_s
    assert pipeline.conditioning.size_bytes == pipeline.conditioning.misses == 0, "left as it was"


class _Everything(set[object]):
    def __contains__(self, _: object) -> bool:
        return True
