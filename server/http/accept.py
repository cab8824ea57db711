"""What an `Accept` header asks for. A header that makes no sense asks for nothing."""

import math
from typing import Final

HTML: Final = "text/html"
JSON_TYPES: Final = ("application/json", "application/*", "*/*")


def accepted_types(header: str) -> list[str]:
    """Return the media types of `header`, the most wanted first; those of equal weight in their order."""
    weighed: list[tuple[float, str]] = []
    for part in header.lower().split(","):
        media_type, *parameters = (word.strip() for word in part.split(";"))
        weights = [_weight(each[2:]) for each in parameters if each.startswith("q=")]
        weight = weights[0] if weights else 1.0
        if media_type and weight > 0:
            weighed.append((weight, media_type))
    return [media_type for _, media_type in sorted(weighed, key=lambda each: -each[0])]


def prefers_html(header: str) -> bool:
    """Whether a page is wanted rather than JSON, which who takes anything gets."""
    known = [each for each in accepted_types(header) if each in (HTML, *JSON_TYPES)]
    return bool(known) and known[0] == HTML


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if math.isfinite(weight) else 0.0
