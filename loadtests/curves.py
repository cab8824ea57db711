"""What devices take for a step, from public measurements, as tables of the server's own cost model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from server.costs import CostTable, KeptTable


@dataclass(frozen=True, slots=True)
class Curve:
    """A device's table, the text rows of a request, and what someone who tunes SGLang for it writes by hand:
    how many pictures of a side share a batch (the best of those tried; `paying_count` for other sides)."""

    table: CostTable
    txt_rows: int
    caps: Mapping[int, int] = field(default_factory=dict)


# Qwen-Image with torch.compile on an H200: 512x512 in 0.167, 0.183, 0.240 and 0.425 s for steps of 1, 2, 4
# and 8, 1024x1024 at 1.02 times the rate in steps of 2 (github.com/sgl-project/sglang/pull/22183). Fitted as
# max(0.167 s, 0.0595 s for 1024 image rows); text, decoding and attention's square are inside or left out.
QWEN_H200: Final = Curve(
    CostTable(step_floor_s=0.167, row_s=0.0595 / 1024), txt_rows=0, caps={512: 4, 768: 2, 1024: 1}
)

# FLUX.1 [schnell] in bfloat16 on an H200, computed from what kernels reach there and not measured: 12.91
# GFLOP a row at 690 TFLOP/s and 3.5 ms of elementwise work at 4352 rows; attention of 57 blocks, 4 * rows**2
# * 3072 FLOP each, at 671 TFLOP/s; 2.5 ms a step that batching saves (a gain of 1.30 at 256x256 and 1.08 at
# 512x512 by waves of tiles); 23.8 GB of weights at 4.3 TB/s. T5 and CLIP 7 ms, the decoder 27 ms at 1024.
FLUX_H200: Final = Curve(
    CostTable(
        step_floor_s=23.8e9 / 4.3e12,
        step_fixed_s=0.0025,
        row_s=12.91e9 / 690e12 + 0.0035 / 4352,
        pair_s=57 * 4 * 3072 / 671e12,
        text_fixed_s=0.004,
        text_row_s=0.003 / 256,
        decode_pixel_s=0.027 / 1024**2,
    ),
    txt_rows=256,
    caps={512: 6, 768: 4, 1024: 2},
)

CURVES: Final = {"qwen-h200": QWEN_H200, "flux-h200": FLUX_H200}


def load_curve(name: str) -> Curve:
    """Return a curve by its name, or from a file that a server's calibration has written.

    Raises `ValueError` for a name that is neither.
    """
    if name in CURVES:
        return CURVES[name]
    if not Path(name).is_file():
        raise ValueError(f"--curve {name}: not one of {', '.join(CURVES)}, and no file")
    try:
        kept = msgspec.json.decode(Path(name).read_bytes(), type=KeptTable)
    except msgspec.MsgspecError as error:
        raise ValueError(f"--curve {name}: no table of a calibration: {error}") from None
    return Curve(kept.table, txt_rows=256)
