"""The command that makes a picture without a server, from a picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.generate import main
from tests.pictures import source_pixels


def test_a_picture_of_another_size_and_kind_is_started_from_and_kept_where_the_mask_is_black(
    tmp_path: Path,
) -> None:
    image, mask, out = (tmp_path / name for name in ("in.png", "mask.png", "out.png"))
    Image.fromarray(source_pixels(120, 90)).convert("RGBA").save(image)
    black = Image.new("RGB", (64, 64))
    black.paste((255, 255, 255), (32, 0, 64, 64))
    black.save(mask)
    arguments = ["a red circle", "-o", str(out), "--image", str(image), "--width", "256", "--height", "256"]
    assert main([*arguments, "--mask", str(mask), "--strength", "1"]) == 0
    started = Image.open(image).convert("RGB").resize((256, 256))
    away = np.abs(np.asarray(Image.open(out)).astype(int) - np.asarray(started)).mean((0, 2))
    assert away[:120].mean() < 12 < away[136:].mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "m.png"], "--mask and --strength need an --image"),
        (["--strength", "0.5"], "--mask and --strength need an --image"),
        (["--image", "in.png", "--strength", "0"], "argument --strength: 0 is not above 0 and at most 1"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", "pyproject.toml"], "cannot identify image file"),
    ],
)
def test_what_cannot_be_started_from_is_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["a", "-o", str(tmp_path / "out.png"), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
