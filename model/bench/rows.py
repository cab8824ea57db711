"""What is written of a contest: a row for every contestant."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernels.machine import Roof
from model.bench.contest import Result, Work
from model.bench.flops import step_flops
from model.layout import Shape
from model.likeness import likeness
from model.pipeline import Pipeline
from model.sampling import PIXELS_PER_PATCH

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the CSV.

    `image` is all from the prompts to the PNG files, of all pictures of the shape together, `step` one step
    of them; `psnr_db` compares the first picture with that of the first contestant.
    """

    model: str
    shape: str
    steps: int
    dtype: str
    numerics: str
    implementation: str
    image_p20_s: float
    image_p50_s: float
    image_p80_s: float
    step_p20_s: float
    step_p50_s: float
    step_p80_s: float
    text_s: float
    start_s: float
    decode_s: float
    png_s: float
    step_tflop: float
    share_of_rate: float
    peak_gib: float | None
    psnr_db: float
    rounds: int
    copied_gb_per_s: float
    multiplied_tflop_per_s: float
    device: str
    driver: str
    torch: str
    triton: str
    commit: str

    def __str__(self) -> str:
        stages = ("text", "start", "step", "decode", "png")
        seconds = (self.text_s, self.start_s, self.step_p50_s, self.decode_s, self.png_s)
        told = ", ".join(f"{stage} {each:.4f}" for stage, each in zip(stages, seconds, strict=True))
        memory = "" if self.peak_gib is None else f", {self.peak_gib:.1f} GiB"
        share = f"{100 * self.share_of_rate:.0f} % of the rate"
        return f"{self.implementation:20} {self.image_p50_s:.4f} s: {told}; {share}{memory}"


def rows(
    results: Sequence[Result],
    work: Work,
    *,
    model: str,
    pipeline: Pipeline,
    roof: Roof,
    machine: dict[str, str],
) -> Iterator[Row]:
    """Yield the rows of a contest over `work`; `pipeline` is ours, of whichever precision."""
    grids = [side // PIXELS_PER_PATCH for side in work.sides]
    config = pipeline.transformer.config
    flops = step_flops(config, [Shape(work.text_length, grid, grid) for grid in grids])
    for result in results:
        image, step = result.quantiles_s(lambda run: run.total_s), result.quantiles_s(lambda run: run.step_s)
        yield Row(
            model=model,
            shape=str(work),
            steps=work.steps,
            dtype=pipeline.info.dtype,
            numerics=pipeline.info.numerics,
            implementation=result.contestant.name,
            image_p20_s=image[0],
            image_p50_s=image[1],
            image_p80_s=image[2],
            step_p20_s=step[0],
            step_p50_s=step[1],
            step_p80_s=step[2],
            text_s=result.stage_s("text"),
            start_s=result.stage_s("start"),
            decode_s=result.stage_s("decode"),
            png_s=result.stage_s("png"),
            step_tflop=flops / 1e12,
            share_of_rate=flops / step[1] / roof.flops_per_s,
            peak_gib=None if result.peak_bytes is None else result.peak_bytes / GIB,
            psnr_db=likeness(result.pictures[0], results[0].pictures[0]).psnr,
            rounds=len(result.runs),
            copied_gb_per_s=roof.bytes_per_s / 1e9,
            multiplied_tflop_per_s=roof.flops_per_s / 1e12,
            device=machine["device"],
            driver=machine["driver"],
            torch=machine["torch"],
            triton=machine["triton"],
            commit=machine["commit"],
        )
