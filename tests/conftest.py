"""Shared by all tests: repeatable examples, and kernels that run without a GPU."""

import os

import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as in the worker

# Triton looks when it is first imported, which other libraries do: its own functions are kernels too.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
