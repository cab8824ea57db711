"""SHA256SUMS: written, checked, and readable by coreutils."""

import subprocess
from pathlib import Path

import pytest

from model.checkpoint import CheckpointError
from model.verify import main, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two files with their sums."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "model_index.json").write_text("{}")
    assert main([str(tmp_path), "--write"]) == 0
    return tmp_path


def test_an_unchanged_folder_passes(folder: Path) -> None:
    assert main([str(folder)]) == 0
    verify(folder)


def test_coreutils_agree(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)


def test_what_changed_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "vae" / "weights.safetensors").write_bytes(b"Weights")
    (folder / "model_index.json").unlink()
    (folder / "added.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert main([str(folder)]) == 1
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 3
    for name, what in (("weights", "has SHA-256"), ("model_index", "missing"), ("added", "not listed")):
        assert any(name in problem and what in problem for problem in problems)
    with pytest.raises(CheckpointError, match="has SHA-256"):
        verify(folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "line 1"),
        ("ab" * 32, "line 1"),
        (f"{'ab' * 32}  ../secret", "outside"),
        (f"{'ab' * 32}  /etc/passwd", "outside"),
        (f"{'AB' * 32}  upper", "line 1"),
        (f"{'ab' * 32}  a\n{'ab' * 32}  a", "line 2"),
    ],
)
def test_a_sums_file_that_is_none_is_refused(folder: Path, line: str, reason: str) -> None:
    (folder / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(CheckpointError, match=reason):
        verify(folder)


def test_lists_that_find_wrote_are_read(folder: Path) -> None:
    command = "find . -type f ! -name SHA256SUMS -exec sha256sum {} + > SHA256SUMS"
    subprocess.run(["sh", "-c", command], cwd=folder, check=True)
    assert " ./vae/weights" in (folder / "SHA256SUMS").read_text()
    verify(folder)
    (folder / "SHA256SUMS").write_text(f"{'ab' * 32}  ./a\n{'ab' * 32}  a\n")
    with pytest.raises(CheckpointError, match="line 2"):
        verify(folder)


@pytest.mark.parametrize("name", ["a\nb", "a\x85b", "a\u2028b", "a\\b"], ids=ascii)
def test_names_that_a_line_cannot_hold_are_not_written(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_text("")
    assert main([str(folder), "--write"]) == 1
    assert "cannot be listed" in capsys.readouterr().err


def test_what_cannot_be_read_or_written_is_told_on_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "SHA256SUMS").unlink()
    (folder / "SHA256SUMS").mkdir()
    for arguments in ([str(folder)], [str(folder), "--write"]):
        capsys.readouterr()
        assert main(arguments) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_without_sums_is_refused(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1
    with pytest.raises(CheckpointError, match="SHA256SUMS: cannot be read"):
        verify(tmp_path)


def test_folders_behind_links_count_too(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "weights.safetensors").write_bytes(b"linked")
    (folder / "transformer").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    assert main([str(folder), "--write"]) == 0
    verify(folder)
    (elsewhere / "weights.safetensors").write_bytes(b"altered")
    with pytest.raises(CheckpointError, match=r"transformer/weights.safetensors: has SHA-256"):
        verify(folder)
