"""What a dialect forgives its clients: more steps than the model takes, and the name of another model.

Interfaces that were made for other models send 20 to 50 steps and names like `gpt-image-1`; refusing those
would help nobody. Which dialects clamp steps, and whether names are checked, are settings.
"""

from dataclasses import dataclass
from typing import Final

from fastapi import Request

from server.errors import InvalidRequest, NotFound
from server.generation import ModelInfo
from server.http.body import shown
from server.http.exchange import exchange_of

MODEL_IDS: Final = ("flux-schnell", "black-forest-labs/FLUX.1-schnell")


@dataclass(frozen=True, slots=True)
class Leniency:
    """One dialect's share of `--clamp-steps`, and `--strict-models`."""

    clamp_steps: bool = True
    strict_models: bool = False

    def steps(self, asked: int | None, model: ModelInfo, *, field: str) -> int:
        """Return the steps to take for those that were asked for; raises `InvalidRequest`."""
        steps = model.default_steps if asked is None else asked
        if steps <= model.max_steps or self.clamp_steps:
            return min(steps, model.max_steps)
        raise InvalidRequest(
            f"{field} is {shown(steps)}; allowed: a whole number from 1 to {model.max_steps}", field=field
        )

    def check_model(self, name: str | None, model: ModelInfo, http: Request, *, field: str) -> None:
        """Note the name of a model that is not served; raises `NotFound` where names are checked."""
        known = names_of(model)
        if name is None or name in known:
            return
        if self.strict_models:
            message = f"{field} is {shown(name)}; allowed: {', '.join(known)}"
            raise NotFound(message, field=field)
        exchange_of(http).note["asked_model"] = shown(name, quote="")


def names_of(model: ModelInfo) -> tuple[str, ...]:
    """Return the names that the served model goes by."""
    return tuple(dict.fromkeys((*MODEL_IDS, model.name)))
