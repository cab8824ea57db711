"""Launches of kernels, caught before they reach a driver: to compile them, or to see what is allocated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction


@contextmanager
def caught(note: Callable[..., None]) -> Iterator[None]:
    """Hand every launch to `note(kernel, args, options)` instead of the driver, or of the interpreter."""

    def run(kernel: object, *args: object, **options: object) -> None:
        note(kernel, args, options)

    with patch.object(JITFunction, "run", run), patch.object(InterpretedFunction, "run", run):
        yield
