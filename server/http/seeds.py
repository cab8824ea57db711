"""Seeds of requests that come without one."""

import secrets

from server.generation import DRAWN_SEED_LIMIT


def given_or_drawn(seed: int | None) -> int:
    """Return `seed`, or one below 2^32, which every client's numbers hold."""
    return secrets.randbelow(DRAWN_SEED_LIMIT) if seed is None else seed
