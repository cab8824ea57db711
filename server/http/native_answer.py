"""What the native API answers: JSON with the pictures, and the events before it where a stream is wanted."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from server.errors import ServerError
from server.events import Advanced, Event
from server.generation import Forecast, GenerationRequest, GenerationResult, Image, Preview
from server.http.errors import STATUS, error_kind, error_object
from server.http.pictures import Picture
from server.http.story import Words
from server.metrics import stage_seconds

EVENTS_TEXT: Final = """The picture, or JSON with base64, or server-sent events, as Accept has it.

Of each picture, by its number `image`: `queued` (`position`: how many are due before it, `predicted_s`:
seconds until it is forecast to be done), `step` (`step` of `steps` is done; from 1 again if a worker died),
`preview` (`index`, `step`, `b64_json`, `content_type`; of half the size, left out where it would come late).
Then `done` with the JSON answer, or `error` with the body of an error."""
EVENTS_EXAMPLE: Final = """event: queued
data: {"image":0,"position":0,"predicted_s":0.21}

event: step
data: {"image":0,"step":1,"steps":4}

event: done
data: {"id":"...","model":"...","num_inference_steps":4,"run_steps":4,"images":[],"timings":{}}

"""


def answer_of(result: GenerationResult) -> dict[str, Any]:
    """Return the JSON answer. Of a picture to start from only the last steps run."""
    answer: dict[str, Any] = {
        "id": result.id,
        "model": result.model,
        "num_inference_steps": result.steps,
        "run_steps": result.run_steps,
        "images": [
            {
                "b64_json": Picture(image.data),
                "content_type": image.content_type,
                "width": image.width,
                "height": image.height,
                "seed": image.seed,
            }
            for image in result.images
        ],
        "timings": {f"{stage}_s": seconds for stage, seconds in stage_seconds(result.timings).items()},
    }
    if result.forecast is not None:
        forecast = {"predicted_s": result.forecast.finish_s, "queue_position": result.forecast.position}
        answer["timings"] |= forecast
    return answer


@dataclass(frozen=True, slots=True)
class NativeScript:
    """The events of a stream."""

    request: GenerationRequest

    def tell(self, number: int, event: Event) -> Words | None:
        """Tell of queue, steps and previews; the pictures come together at the end."""
        match event:
            case Forecast(position=position, finish_s=finish_s):
                return "queued", {"image": number, "position": position, "predicted_s": round(finish_s, 4)}
            case Advanced(step=step, steps=steps):
                return "step", {"image": number, "step": step, "steps": steps}
            case Preview():
                return "preview", {
                    "image": number,
                    "index": event.index,
                    "step": event.step,
                    "b64_json": Picture(event.data),
                    "content_type": event.content_type,
                }
            case Image():
                return None

    def end(self, made: GenerationResult, told: Collection[int]) -> list[Words]:
        """The answer is what it is without a stream."""
        return [("done", answer_of(made))]

    def fail(self, error: ServerError) -> Words:
        """The body of an error is what it is without a stream."""
        return "error", {"error": error_object(error, self.request.id, error_kind(STATUS[error.code]))}
