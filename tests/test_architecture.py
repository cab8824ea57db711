"""The layers hold: imports point down, the front end never sees torch, nothing is pickled."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "model", "server")
# What each part may import of ours, longest prefix first. `server` alone is the version.
BELOW_WORKER = ("batcher", "costs", "generation", "inherited", "protocol", "errors", "logs")
# What runs in processes of its own, with more than the front end may have.
CHILDREN = ("server.worker", "server.decoder")
ALLOWED = {
    "server.worker": (
        "server.worker",
        "server",
        "model",
        "kernels",
        *(f"server.{name}" for name in BELOW_WORKER),
    ),
    "server.decoder": (
        "server.decoder",
        "server.decoding",
        "server.geometry",
        "server.inherited",
        "server.protocol",
    ),
    "server.http": ("server",),
    "server.batcher": ("server.costs", "server.fairness", "server.generation"),
    "server.fairness": ("server.generation",),
    "server.costs": ("server.generation",),
    "server.generation": (),
    "server.errors": (),
    "server.settings": ("server.generation",),
    "server.keys": ("server.generation",),
    "server.quotas": ("server.errors", "server.keys"),
    "server.usage": ("server.quotas",),
    "server.caller": ("server.errors", "server.generation", "server.keys", "server.quotas"),
    "server.protocol": ("server.costs", "server.generation"),
    "server.geometry": ("server.generation",),
    "server.decoding": ("server.geometry", "server.protocol"),
    "server.inherited": ("server.protocol",),
    "server.recent": ("server.costs", "server.protocol"),
    "server.metrics": ("server.errors", "server.generation", "server.protocol", "server.recent"),
    "server": ("server",),
    "model": ("model", "kernels"),
    "kernels": ("kernels",),
}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def rule_for(name: str) -> tuple[str, ...]:
    prefix = max((each for each in ALLOWED if name == each or name.startswith(f"{each}.")), key=len)
    return ALLOWED[prefix]


def is_front(name: str) -> bool:
    return name.split(".")[0] == "server" and not is_within(name, CHILDREN)


def is_within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == each or (each not in ("server",) and name.startswith(f"{each}.")) for each in allowed)


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_point_down(path: Path) -> None:
    name = dotted(path)
    allowed = rule_for(name)
    for imported in imports(path):
        if imported.split(".")[0] not in PACKAGES:
            continue
        if is_front(name):
            assert not is_within(imported, (*CHILDREN, "model", "kernels")), f"{name} imports {imported}"
        if allowed != ("server",):
            assert is_within(imported, allowed), f"{name} imports {imported}"
    if is_front(name):
        assert not {"torch", "numpy", "PIL"} & {imported.split(".")[0] for imported in imports(path)}


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_every_import_is_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert node in tree.body, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_files_and_functions_keep_their_size(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.endswith("_router"):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 75, f"{path}: {node.name}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_every_module_says_what_it_is(path: Path) -> None:
    if path.read_text():
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_front_end_starts_quickly_and_without_torch() -> None:
    code = (
        "import time; began = time.process_time(); import server.app, sys; "
        "print(time.process_time() - began); "
        "print(sorted({'torch', 'transformers', 'numpy', 'PIL', 'model', 'kernels'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, loaded = ended.stdout.splitlines()
    assert loaded == "[]"
    assert float(seconds) < 2


def test_nothing_is_pickled() -> None:
    for path in modules():
        names = {imported.split(".")[0] for imported in imports(path)}
        if dotted(path) != "model.pickled":
            assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing"}, path
            assert "torch.load(" not in path.read_text(), path


def test_nothing_but_its_training_knows_the_training_of_the_embedded_model() -> None:
    for path in modules():
        if not dotted(path).startswith("model.training"):
            assert not any(name.startswith("model.training") for name in imports(path)), path


def test_nothing_in_the_packages_knows_the_embedded_model_is_small() -> None:
    for path in modules():
        if dotted(path).startswith("model.training"):
            continue  # its making must
        text = path.read_text()
        for line in text.splitlines():
            if "tiny" in line:
                assert "EMBEDDED_MODEL" in line or '"model" / "tiny"' in line, f"{path}: {line}"


def test_the_version_is_written_once() -> None:
    import tomllib

    from server import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
