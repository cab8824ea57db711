"""The events of fal's `/stream`: the output again and again, first with previews, at last with the pictures.

What is seen of each picture so far is in every event, so that a client shows the newest one and needs to know
nothing else. Events have no names there.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from server.errors import ServerError
from server.events import Event
from server.generation import GenerationRequest, Image, Preview, Timings
from server.http.fal_app import error_content, output_of
from server.http.pictures import Picture
from server.http.story import Words

PREVIEWS: Final = 3


@dataclass(slots=True)
class FalScript:
    """What is made is the output of the app, as it is without a stream."""

    request: GenerationRequest
    _seen: dict[int, Image] = field(default_factory=dict)

    def tell(self, number: int, event: Event) -> Words | None:
        """Show every preview, with what there is of the others."""
        match event:
            case Preview(data=data, content_type=content_type):
                self._seen[number] = Image(
                    data=data,
                    content_type=content_type,
                    width=self.request.width // 2,
                    height=self.request.height // 2,
                    seed=self.request.seed + number,
                    timings=Timings(),
                )
                return "", self._so_far()
            case Image():
                self._seen[number] = event  # shown with the next preview of another one, or with all
        return None

    def end(self, made: dict[str, Any], told: Collection[int]) -> list[Words]:
        """The last event is the output."""
        return [("", made)]

    def fail(self, error: ServerError) -> Words:
        """A failure is what it is without a stream; clients get it as the last event."""
        return "", error_content(error)

    def _so_far(self) -> dict[str, Any]:
        images = [image for _, image in sorted(self._seen.items())]
        pictures = [Picture(each.data, prefix=f"data:{each.content_type};base64,") for each in images]
        return output_of(self.request, images, pictures, None)
