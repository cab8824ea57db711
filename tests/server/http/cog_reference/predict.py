"""A predictor with the signature of black-forest-labs/flux-schnell, run by the real Cog server."""

import base64
import sys
import tempfile
import time
from pathlib import Path as FilePath
from typing import List, Optional  # noqa: UP035 - Cog reads these

from cog import BasePredictor, Input, Path

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
RATIOS = ["1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"]


class Predictor(BasePredictor):
    """Answers at once, fails for `generation_failed` and takes a while for `wait`."""

    def setup(self) -> None:
        time.sleep(2)

    def predict(
        self,
        prompt: str = Input(),
        aspect_ratio: str = Input(choices=RATIOS, default="1:1"),
        num_outputs: int = Input(default=1, ge=1, le=4),
        num_inference_steps: int = Input(default=4, ge=1, le=4),
        seed: Optional[int] = Input(default=None),  # noqa: UP045
        output_format: str = Input(choices=["webp", "jpg", "png"], default="webp"),
        output_quality: int = Input(default=80, ge=0, le=100),
        disable_safety_checker: bool = Input(default=False),
        go_fast: bool = Input(default=True),
        megapixels: str = Input(choices=["1", "0.25"], default="1"),
    ) -> List[Path]:  # noqa: UP006
        sys.stdout.write(f"Using seed: {seed or 7}\n")
        if prompt == "generation_failed":
            raise ValueError("the picture holds NaN")
        if prompt == "wait":
            time.sleep(2)
        paths = []
        for number in range(num_outputs):
            path = FilePath(tempfile.mkdtemp()) / f"out-{number}.{output_format}"
            path.write_bytes(PNG)
            paths.append(Path(str(path)))
        return paths
