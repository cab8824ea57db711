"""The picture that another one starts from: how many steps it leaves out, and what a sample begins with.

The pipeline asks when it starts a sample; what is kept of the picture the sample itself puts back. Formulas
and the order of random draws: diffusers' FluxImg2ImgPipeline and FluxInpaintPipeline.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.autoencoder import Autoencoder
from model.sampling import LATENT_CHANNELS, PIXELS_PER_LATENT, Kept, add_noise, draw_latents, pack, seeded

REDRAWN_FROM = 128  # of 255: a mask is rounded to nothing or all


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A picture: `pixels` uint8 [height, width, 3], of the size of what is made of it.

    `strength`, above 0 and at most 1, is the part of the schedule that runs. `mask` uint8 [height, width]
    says what is drawn anew, from 128 on; without it that is all.
    """

    pixels: npt.NDArray[np.uint8]
    strength: float
    mask: npt.NDArray[np.uint8] | None = None

    def first_step(self, steps: int) -> int:
        """Return how many of `steps` are left out, the first ones: a part of a step runs as a whole one."""
        return int(max(steps - min(steps * self.strength, steps), 0))

    def image(self) -> Tensor:
        """Return it as the autoencoder takes it: float32 [1, 3, height, width] in [-1, 1]."""
        unit = torch.from_numpy(self.pixels.astype(np.float32)) / 255
        return (unit * 2 - 1).permute(2, 0, 1).unsqueeze(0)

    def redrawn(self) -> Tensor | None:
        """Return where latents are drawn anew, bool [tokens, 64]; None for everywhere.

        A latent is what the top left one of its 8x8 pixels is.
        """
        if self.mask is None:
            return None
        latents = torch.from_numpy(self.mask[::PIXELS_PER_LATENT, ::PIXELS_PER_LATENT] >= REDRAWN_FROM)
        return pack(latents.repeat(1, LATENT_CHANNELS, 1, 1))[0]


def begin_from(
    source: Source, autoencoder: Autoencoder, *, seed: int, sigma: float
) -> tuple[Tensor, Kept | None]:
    """Return the latents [tokens, 64] of a source at the time `sigma`, and what is kept of it.

    The draws are those of diffusers: first the posterior's, then the noise; its third, of a masked picture
    that no model of this kind sees, is left out. Where nothing is kept, a start at 1 is the noise alone, and
    the source is not encoded.
    """
    device, (height, width, _) = autoencoder.encoder.conv_in.weight.device, source.pixels.shape
    generator = seeded(seed)
    of_posterior, drawn = (draw_latents(generator, width=width, height=height).to(device) for _ in range(2))
    noise, redrawn = pack(drawn)[0], source.redrawn()
    if sigma == 1 and redrawn is None:
        return noise, None
    latents = pack(autoencoder.encode(source.image().to(device), of_posterior))[0]
    kept = None if redrawn is None else Kept(latents, noise, redrawn.to(device))
    return add_noise(latents, noise, sigma), kept
