"""Pictures as files: whole or not there, and gone when their time is up."""

from pathlib import Path

from server.generation import Image, Timings
from server.picture_files import PictureFiles

LIFETIME_S = 60.0


def picture(data: bytes) -> Image:
    return Image(data=data, content_type="image/webp", width=1, height=1, seed=1, timings=Timings())


def test_a_picture_is_there_until_its_time_is_up(tmp_path: Path) -> None:
    files = PictureFiles(tmp_path, lifetime_s=LIFETIME_S)
    (kept,) = files.keep([picture(b"a")])
    written_s = (tmp_path / kept.name).stat().st_mtime
    for passed_s, there in ((LIFETIME_S - 1, True), (LIFETIME_S, False)):
        later = PictureFiles(tmp_path, lifetime_s=LIFETIME_S, clock=lambda: written_s + passed_s)  # noqa: B023
        found = later.read(kept.name)
        assert (found is not None) == there
        assert found is None or (found.data, found.content_type, found.left_s) == (b"a", "image/webp", 1)
        later.sweep()
        assert (tmp_path / kept.name).exists() == there


def test_what_was_half_written_is_gone_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "half.webp.part").write_bytes(b"a")
    PictureFiles(tmp_path, lifetime_s=LIFETIME_S)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_passes_over_what_others_remove_meanwhile(tmp_path: Path) -> None:
    files = PictureFiles(tmp_path, lifetime_s=LIFETIME_S)
    kept = files.keep(picture(b"a") for _ in range(3))
    for number in range(3):
        (tmp_path / f"gone-{number}").symlink_to(tmp_path / "nowhere")  # listed, and not there when looked at
    PictureFiles(tmp_path, lifetime_s=-LIFETIME_S).sweep()
    assert not any((tmp_path / each.name).exists() for each in kept)
