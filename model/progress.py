"""The progress bar of loading a checkpoint; silent where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@contextmanager
def loading_bar() -> Iterator[Progress]:
    """Show a bar on stderr if it is a terminal; yield what moves it."""
    with tqdm(total=0, unit="B", unit_scale=True, desc="loading", disable=None, leave=False) as bar:

        def progress(done_bytes: int, total_bytes: int) -> None:
            bar.total = total_bytes
            bar.update(done_bytes - bar.n)

        yield progress


def counted(progress: Progress | None, total_bytes: int) -> Callable[[int], None]:
    """Return what adds up the bytes read by all components and reports them."""
    done_bytes = 0

    def advance(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        if progress is not None:
            progress(done_bytes, total_bytes)

    return advance
