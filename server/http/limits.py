"""What a key has left, in the headers of draft-ietf-httpapi-ratelimit-headers-09: whole units and seconds."""

import math
from collections.abc import Sequence

from server.quotas import Standing


def limit_headers(standings: Sequence[Standing]) -> dict[str, str]:
    """Return `RateLimit-Policy` (the limits) and `RateLimit` (what is left), or nothing without limits."""
    if not standings:
        return {}
    policy = (f'"{each.name}";q={math.floor(each.limit)};w={each.window_s:.0f}' for each in standings)
    left = (f'"{each.name}";r={math.floor(each.left)};t={math.ceil(each.reset_s)}' for each in standings)
    return {"RateLimit-Policy": ", ".join(policy), "RateLimit": ", ".join(left)}
