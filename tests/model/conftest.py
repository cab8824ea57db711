"""Random checkpoints on disk and the diffusers pipelines that wrote them, made once per session."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from diffusers import FluxPipeline

from tests.checkpoints import random_pipeline, write_tokenizers

Oracle = Callable[..., tuple[FluxPipeline, Path]]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tokenizer/` and `tokenizer_2/`."""
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    return folder


@pytest.fixture(scope="session")
def oracle(tokenizers: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Return a diffusers pipeline and the folder that it was saved to, for options of `random_pipeline`."""

    @lru_cache
    def make(**options: int) -> tuple[FluxPipeline, Path]:
        pipeline = random_pipeline(tokenizers, **options)
        folder = tmp_path_factory.mktemp("checkpoint")
        pipeline.save_pretrained(folder)
        return pipeline, folder

    return make
