"""What a request starts from: pixels and masks are those of diffusers, what is kept is kept exactly."""

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

from server.decoder.files import Unusable
from server.decoder.source import decode
from server.decoding import Decode, Decoded, Fit, Painted, Sent
from server.geometry import Borders
from tests.server.decoder.pictures import file_of, gradient


def sent(image: Image.Image) -> Sent:
    return Sent(data=memoryview(file_of(image)), base64=False)


def start(image: Image.Image, mask: Image.Image | None = None, **asked: object) -> Decoded:
    given = Decode(image=sent(image), mask=None if mask is None else sent(mask), **asked)  # type: ignore[arg-type]
    return decode(given, max_pixels=1_000_000)


def pixels(decoded: Decoded) -> np.ndarray:
    return np.frombuffer(decoded.pixels, np.uint8).reshape(decoded.height, decoded.width, 3)


def plane(decoded: Decoded, data: bytes | None) -> np.ndarray:
    assert data is not None
    return np.frombuffer(data, np.uint8).reshape(decoded.height, decoded.width)


def spot(width: int, height: int) -> Image.Image:
    """A mask with a grey edge: a white disc on black."""
    mask = Image.new("L", (width * 2, height * 2))
    ImageDraw.Draw(mask).ellipse((width // 2, height // 2, width, height), fill=255)
    return mask.resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("fit", [Fit.STRETCH, Fit.CROP])
def test_pixels_and_masks_are_those_of_diffusers(fit: Fit) -> None:
    image, mask = gradient(500, 300), spot(500, 300)
    decoded = start(image, mask, width=256, height=272, fit=fit)
    mode = "default" if fit is Fit.STRETCH else "crop"
    theirs = VaeImageProcessor(vae_scale_factor=16).preprocess(image, 272, 256, resize_mode=mode)
    ours = pixels(decoded).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(theirs[0].numpy() - ours).max() < (1e-6 if fit is Fit.STRETCH else 0.03)
    masks = VaeImageProcessor(
        vae_scale_factor=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    if fit is Fit.STRETCH:
        theirs = masks.preprocess(mask, 272, 256)
        assert (theirs[0, 0].numpy() == plane(decoded, decoded.mask) / 255).all()
    assert decoded.blend == decoded.mask


def test_without_a_size_a_picture_keeps_its_own() -> None:
    decoded = start(gradient(272, 512))
    assert (decoded.width, decoded.height) == (272, 512)
    assert (decoded.pixels, decoded.mask, decoded.blend) == (gradient(272, 512).tobytes(), None, None)


def test_a_picture_that_is_filled_up_has_its_edges_around_it() -> None:
    decoded = start(Image.new("RGB", (512, 256), (9, 99, 199)), width=256, height=256, fit=Fit.FILL)
    assert (pixels(decoded) == (9, 99, 199)).all()


def test_a_mask_can_be_dark_or_clear() -> None:
    mask = spot(256, 256)
    light = start(gradient(256, 256), mask)
    dark = start(gradient(256, 256), mask, painted=Painted.DARK)
    assert (plane(dark, dark.mask) == 255 - plane(light, light.mask)).all()
    clear = Image.new("RGBA", (256, 256), "black")
    clear.putalpha(mask.point(lambda value: 255 - value))
    assert start(gradient(256, 256), clear, painted=Painted.CLEAR).mask == light.mask
    with pytest.raises(Unusable, match="without transparency"):
        start(gradient(256, 256), mask, painted=Painted.CLEAR)


def test_what_is_clear_in_a_mask_of_light_says_nothing() -> None:
    mask = Image.new("RGBA", (256, 256), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 100, 100))
    decoded = start(gradient(256, 256), mask)
    assert plane(decoded, decoded.mask).sum() == 255 * 100 * 100


def test_the_transparency_of_a_picture_is_its_mask_where_that_is_wanted() -> None:
    image = gradient(256, 256)
    image.putalpha(spot(256, 256).point(lambda value: 255 - value))
    assert start(image).mask is None
    wanted = start(image, clear_is_mask=True)
    assert wanted.mask == start(gradient(256, 256), spot(256, 256)).mask
    image.putalpha(255)
    assert start(image, clear_is_mask=True).mask is None


def test_nothing_is_pasted_back_where_that_is_not_wanted() -> None:
    decoded = start(gradient(256, 256), spot(256, 256), preserve=False)
    assert decoded.mask is not None
    assert decoded.blend is None


def test_a_blur_softens_the_edge_of_what_is_pasted_back_and_not_of_the_mask() -> None:
    hard, soft = (start(gradient(256, 256), spot(256, 256), blur=blur) for blur in (0, 8))
    assert soft.mask == hard.mask
    assert set(np.unique(plane(hard, hard.blend))) == {0, 255}
    assert len(np.unique(plane(soft, soft.blend))) > 100


def test_outpainting_keeps_the_picture_exactly_but_for_a_seam() -> None:
    image = gradient(300, 256)
    decoded = start(image, borders=Borders(left=100, bottom=60))
    assert (decoded.width, decoded.height) == (400, 320)
    mask, blend, all_pixels = plane(decoded, decoded.mask), plane(decoded, decoded.blend), pixels(decoded)
    inner = np.asarray(image)
    assert (all_pixels[:256, 100:] == inner).all(), "the picture lies in it untouched"
    outside = np.ones((320, 400), bool)
    outside[:256, 100:] = False
    assert (mask[outside] == 255).all()
    assert (blend[outside] == 255).all()
    assert not mask[: 256 - 32, 132:].any()
    assert not blend[: 256 - 32, 132:].any(), "beyond the seam not one byte changes"
    assert (mask[:224, 100:132] == 255).all()
    ramp = blend[0, 100:132].astype(int)
    assert (np.diff(ramp) < 0).all()
    assert ramp[0] > 240 > 15 > ramp[-1] > 0


def test_the_new_area_goes_on_from_the_edges() -> None:
    image = Image.new("RGB", (256, 256), (200, 100, 50))
    assert (pixels(start(image, borders=Borders(256, 256, 64, 0))) == (200, 100, 50)).all()


def test_a_mask_and_borders_are_drawn_anew_together() -> None:
    mask = Image.new("L", (256, 256))
    mask.paste(255, (100, 100, 140, 140))
    decoded = start(gradient(256, 256), mask, borders=Borders(right=64))
    assert decoded.width == 320
    painted = plane(decoded, decoded.mask)
    assert (painted[100:140, 100:140] == 255).all()
    assert (painted[:, 256:] == 255).all()
    assert not painted[:100, :200].any()
    assert start(gradient(256, 256), mask, borders=Borders(right=64), preserve=False).blend is None
