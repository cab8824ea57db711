"""What a dialect forgives its clients: more steps than the model takes, and the name of another model.

Interfaces that were made for other models send 20 to 50 steps and names like `gpt-image-1`; refusing those
would help nobody. Which dialects clamp steps, and whether names are checked, are settings.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from fastapi import Request

from server.errors import InvalidRequest, NotFound
from server.generation import MAX_GUIDANCE_SCALE, MODEL_DEFAULT, ModelInfo
from server.http.body import shown
from server.http.exchange import exchange_of

MODEL_IDS: Final = ("flux-schnell", "black-forest-labs/FLUX.1-schnell")


class Fit(NamedTuple):
    """Steps, text tokens and guidance of a request."""

    steps: int
    sequence_length: int
    guidance_scale: float


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

    def fit(
        self, model: ModelInfo | None, *, steps: int | None, field: str, guidance: float | None = None
    ) -> "Fit":
        """Return what the model decides of a job, by what was asked for; raises `InvalidRequest`.

        While no model is loaded it is left to it: see `GenerationRequest.fitted`. `guidance` counts on
        guidance-distilled weights only.
        """
        if model is None:
            return Fit(steps or MODEL_DEFAULT, MODEL_DEFAULT, 0.0)
        counts = guidance if guidance is not None and model.guidance_embed else 0.0
        return Fit(
            self.steps(steps, model, field=field),
            model.default_sequence_length,
            min(counts, MAX_GUIDANCE_SCALE),
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


def adapter_names_of(model: ModelInfo) -> tuple[str, ...]:
    """Return the names of the adapters that are not names of the model."""
    return tuple(each.name for each in model.adapters if each.name not in names_of(model))
