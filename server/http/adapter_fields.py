"""The adapters that a request asks for, in whatever words its dialect has for them.

Adapters are known by name; none is ever fetched, so an address is refused in words.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BeforeValidator, Field

from server.adapters import identified
from server.errors import InvalidRequest
from server.generation import MAX_ADAPTER_SCALE, MAX_ADAPTERS, Adapter, ModelInfo
from server.http.body import RequestBody, Text, shown

MAX_NAME_CHARS: Final = 2000  # of what may be an address elsewhere
SCALE_RULE: Final = f"a number from {-MAX_ADAPTER_SCALE:g} to {MAX_ADAPTER_SCALE:g}"
NAME_RULE: Final = "the name of an adapter of this server, as GET /v1/loras lists them"

Name = Annotated[Text, Field(min_length=1, max_length=MAX_NAME_CHARS, description=NAME_RULE)]
Scale = Annotated[float, Field(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE, description=SCALE_RULE)]


class Lora(RequestBody):
    """An adapter and how much of it."""

    name: Name
    scale: Scale = 1.0


def _listed(sent: object) -> object:
    """Read `name:scale,name` as an address has it."""
    if not isinstance(sent, str):
        return sent
    found: list[dict[str, Any]] = []
    for part in filter(None, sent.split(",")):
        name, colon, scale = part.partition(":")
        try:
            found.append({"name": name, "scale": float(scale) if colon else 1.0})
        except ValueError:
            raise ValueError(f"{scale[:40]!a} is no number") from None
    return found


AtMost = Annotated[list[Lora], Field(max_length=MAX_ADAPTERS)]
Loras = Annotated[
    AtMost | None,
    BeforeValidator(_listed, json_schema_input_type=AtMost | None),
    Field(description=f"a list of at most {MAX_ADAPTERS} objects of name and scale ({SCALE_RULE})"),
]
QUERY_PARAMETER: Final[dict[str, Any]] = {
    "name": "loras",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": f"adapters, with commas between: at most {MAX_ADAPTERS} of name or name:scale",
}


class Asked(NamedTuple):
    """An adapter by its name; `field` is what the client calls the name."""

    name: str
    scale: float
    field: str


def asked_in(loras: Sequence[Lora] | None, *, field: str = "loras") -> list[Asked]:
    """Return what a list of objects asks for."""
    return [Asked(lora.name, lora.scale, f"{field}.{n}.name") for n, lora in enumerate(loras or ())]


def chosen(asked: Iterable[Asked], model: ModelInfo | None) -> tuple[Adapter, ...]:
    """Return the adapters of a request; those of scale 0 change nothing, and are none.

    While no model is loaded names are taken as they are, and looked at when the request runs. Raises
    `InvalidRequest`.
    """
    adapters: dict[str, Adapter] = {}
    for name, scale, field in asked:
        if "/" in name or ":" in name:
            raise InvalidRequest(
                f"{field} is {shown(name)}; adapters are not fetched from addresses; allowed: {NAME_RULE}",
                field=field,
            )
        if not -MAX_ADAPTER_SCALE <= scale <= MAX_ADAPTER_SCALE:
            raise InvalidRequest(f"{field} has scale {scale:g}; allowed: {SCALE_RULE}", field=field)
        if name in adapters:
            raise InvalidRequest(f"{field} is {shown(name)} for a second time; allowed: once", field=field)
        if len(adapters) == MAX_ADAPTERS:
            raise InvalidRequest(f"{field} is one too many; allowed: {MAX_ADAPTERS} adapters", field=field)
        adapters[name] = Adapter(name=name, scale=scale)
        if model is not None:
            (adapters[name],) = identified((adapters[name],), model.adapters, field=field)
    return tuple(each for each in adapters.values() if each.scale)
