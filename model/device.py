"""Where and in which precision a model runs, when the caller leaves it open."""

import logging
from typing import Literal

import torch

from model.layout import Numerics
from model.lending import Memory

log = logging.getLogger(__name__)

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
NumericsName = Literal["auto", "exact", "fast"]
MemoryName = Literal["full", "balanced", "low"]


def choose_device(name: str) -> torch.device:
    """Return the named device; `auto` is the first GPU where there is one. Raises `ValueError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name} was asked for, but PyTorch sees no CUDA device")
    return device


def choose_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """Return the named dtype; `auto` is float32 on a CPU and bfloat16 on a GPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def choose_numerics(name: NumericsName, device: torch.device) -> Numerics:
    """Return the named numerics; `auto` is exact on a CPU, where sharing a product wins little."""
    if name == "auto":
        return Numerics.EXACT if device.type == "cpu" else Numerics.FAST
    return Numerics(name)


def choose_memory(name: MemoryName, device: torch.device) -> Memory:
    """Return the named preset; on a CPU the full one, since host memory is all there is."""
    if device.type == "cpu" and name != "full":
        log.info("memory %s changes nothing on a CPU: its memory is the host's", name)
        return Memory.FULL
    return Memory(name)
