"""Pictures to start from and masks, in which a wrong turn, mirror, scale or rounding shows."""

import numpy as np
import numpy.typing as npt


def source_pixels(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return a picture with edges, ramps and noise, which is no mirror or turn of itself."""
    rows, columns = np.mgrid[:height, :width]
    ramps = np.stack([rows % 256, columns % 256, (2 * rows + columns) % 256], axis=2)
    ramps[rows > 2 * columns] //= 4
    noise = np.random.default_rng(0).integers(-20, 20, ramps.shape)
    return np.clip(ramps + noise, 0, 255).astype(np.uint8)


def ragged_mask(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return a mask of every grey whose border falls inside of latents and patches."""
    rows, columns = np.mgrid[:height, :width]
    mask = (7 * rows + 3 * columns) % 256
    mask[(rows - height // 3) ** 2 + (columns - width // 2) ** 2 < (width // 4) ** 2] = 255
    mask[rows > height - 37] = 0
    return mask.astype(np.uint8)
