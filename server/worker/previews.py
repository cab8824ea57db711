"""Previews of pictures on their way: which are due, and turning them into files.

The loop notes them when a step ends, makes them in the lane that decodes, before anything else there since
they take about a millisecond, and has encoder threads write them. Steps never wait for one. A preview that
comes after the next one of its picture, or after its last step, is dropped.
"""

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from PIL import Image

from model.pipeline import Pixels
from model.sampling import Sample
from server.batcher import Entry
from server.generation import ImageRequest, Preview, content_type
from server.worker.encode import Provenance, encode_image
from server.worker.stages import Work

SIDE_DIVISOR: Final = 2  # of the picture's sides; a latent is 8 pixels wide, so nothing is lost


@dataclass(frozen=True, slots=True)
class Moment:
    """A picture as it was after a step; `sample` is a copy that the next step leaves alone."""

    request: ImageRequest
    entry: Entry
    sample: Sample
    step: int

    @property
    def is_late(self) -> bool:
        """Whether there is something newer to show."""
        done = self.entry.steps_done
        return done == self.entry.steps or any(self.step < step <= done for step in self.request.previews)


@dataclass(slots=True)
class Previews:
    """Those that are due, one of a picture at most, in the order in which they became so."""

    _due: dict[str, Moment] = field(default_factory=dict)

    def note(self, work: Work) -> None:
        """Take in that a step of a picture ended; called before its next one can begin."""
        request, step = work.request, work.entry.steps_done
        if step in request.previews and work.sample is not None:
            self._due[request.id] = Moment(request, work.entry, replace(work.sample), step)

    def take(self, in_hand: Container[str]) -> Moment | None:
        """Return the one to make now, None when there is none that is in time and of a picture in hand."""
        while self._due:
            moment = self._due.pop(next(iter(self._due)))
            if moment.request.id in in_hand and not moment.is_late:
                return moment
        return None


def encode_preview(pixels: Pixels, moment: Moment, provenance: Provenance) -> Preview:
    """Write `pixels` [height/8, width/8, 3], enlarged, in the format of the picture."""
    request = moment.request
    size = (request.width // SIDE_DIVISOR, request.height // SIDE_DIVISOR)
    enlarged = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    data = encode_image(
        np.asarray(enlarged),
        image_format=request.image_format,
        quality=request.quality,
        provenance=provenance,
    )
    return Preview(
        index=request.previews.index(moment.step),
        step=moment.step,
        data=data,
        content_type=content_type(request.image_format),
    )
