"""SHA-256 sums of a checkpoint folder: `python -m model.verify PATH` checks them, `--write` makes them.

The file is coreutils' format, so `sha256sum -c SHA256SUMS` checks it too.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from model.safetensors_file import CheckpointError

SUMS_NAME = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; prints one line per problem and returns 1 if there is any."""
    parser = argparse.ArgumentParser(prog="python -m model.verify", description=__doc__)
    parser.add_argument("path", type=Path, help="checkpoint folder")
    parser.add_argument("--write", action="store_true", help=f"write {SUMS_NAME} instead of checking it")
    options = parser.parse_args(arguments)
    try:
        if options.write:
            print(f"{write_sums(options.path)} files listed in {options.path / SUMS_NAME}")
            return 0
        problems = list(find_problems(options.path))
    except CheckpointError as error:
        problems = [str(error)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{options.path}: as listed in {SUMS_NAME}")
    return 1 if problems else 0


def has_sums(path: Path) -> bool:
    """Tell whether the checkpoint at `path`, a folder or a file in one, comes with sums to check."""
    return (_folder(path) / SUMS_NAME).is_file()


def verify(path: Path) -> None:
    """Raise `CheckpointError` unless the folder of `path` is exactly what its SHA256SUMS lists."""
    if problems := list(find_problems(_folder(path))):
        raise CheckpointError("; ".join(problems[:10]))


def write_sums(folder: Path) -> int:
    """Write SHA256SUMS for every file of the folder and return how many there are."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder")
    names = sorted(_files(folder))
    if odd := [name for name in names if not name.isprintable() or "\\" in name]:
        raise CheckpointError(f"{folder}: the file name {odd[0]!r} cannot be listed in {SUMS_NAME}")
    lines = [f"{file_sum(folder / name)}  {name}\n" for name in names]
    try:
        (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder / SUMS_NAME}: cannot be written: {error.strerror}") from None
    return len(names)


def find_problems(folder: Path) -> Iterator[str]:
    """Yield one line for every file that is missing, altered or not listed.

    Not only weights: an added tokenizer.json or config.json changes the pictures too.
    """
    sums = read_sums(folder / SUMS_NAME)
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: is listed in {SUMS_NAME} and missing"
        elif (found := file_sum(path)) != expected:
            yield f"{path}: has SHA-256 {found}, {SUMS_NAME} lists {expected}"
    for name in sorted(_files(folder)):
        if name not in sums:
            yield f"{folder / name}: is not listed in {SUMS_NAME}"


def read_sums(path: Path) -> dict[str, str]:
    """Read a SHA256SUMS file; raises `CheckpointError` naming the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8") from None
    sums: dict[str, str] = {}
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        match = LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else PurePosixPath()  # "./vae/a" is "vae/a"
        if match is None or str(name) in sums:
            raise CheckpointError(f"{path}: line {number} is not a new SHA-256 sum and a file name")
        if name.is_absolute() or ".." in name.parts:
            raise CheckpointError(f"{path}: line {number} names {match[2]!r}, which is outside of the folder")
        sums[str(name)] = match[1]
    return sums


def file_sum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; raises `CheckpointError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _files(folder: Path) -> Iterator[str]:
    """Yield the names of all files, also behind links to folders; dot files and the sums are left out."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()  # a link back up
            continue
        seen.add(real)
        for name in names:
            path = (Path(place) / name).relative_to(folder).as_posix()
            if path != SUMS_NAME and not path.startswith(".") and (folder / path).is_file():
                yield path


def _refuse(error: OSError) -> None:
    raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}")


if __name__ == "__main__":
    sys.exit(main())
