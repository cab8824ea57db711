"""Shared by all tests: repeatable examples, and kernels that run without a GPU."""

import os

import pytest
import structlog
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Half a second for every traceback if rich draws it, with all that its frames hold.
structlog.configure(
    processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
)

torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as in the worker

# Triton looks when it is first imported, which other libraries do: its own functions are kernels too.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
