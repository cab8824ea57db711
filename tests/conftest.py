"""Shared by all tests: repeatable examples, and kernels that run without a GPU."""

import os

import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Triton looks when it is first imported, which other libraries do: its own functions are kernels too.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
