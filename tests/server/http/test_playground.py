"""The page at `/`: its files and headers, who gets it, and the JavaScript in it that needs no browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server import generation
from server.app import Edge
from server.http.playground import FOLDER, MEDIA_TYPES
from server.http.sizes import SIDE_RULE
from tests.server.http.fake_engine import FakeEngine, serving

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
TESTS = Path(__file__).with_name("playground")
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not there")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(FakeEngine()) as url, httpx.Client(base_url=url, headers={"Accept": BROWSER}) as made:
        yield made


def test_browsers_get_the_page_and_programs_the_index(client: httpx.Client) -> None:
    for accept, is_page in (
        (BROWSER, True),
        ("text/html", True),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0.5, */*", False),
        ("", False),
    ):
        answer = client.get("/", headers={"Accept": accept})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html") is is_page, accept
        assert answer.headers["vary"] == "Accept"
    assert client.head("/").headers["content-type"].startswith("text/html")


def test_nothing_of_the_page_may_load_or_run_what_is_not_of_it(client: httpx.Client) -> None:
    for path in ("/", *(f"/playground/{name}" for name in NAMES)):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        for rule in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"):
            assert rule in policy
        for rule in ("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
            assert rule in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"


def test_the_page_is_all_relative_and_names_only_what_there_is(client: httpx.Client) -> None:
    page = client.get("/").text
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert named
    for address in named:
        assert not re.match(r"/|\w+:", address), f"{address} would not work behind --root-path"
        assert client.get(address).status_code == 200, address
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", page), "the policy forbids it"
    for name in NAMES:
        text = (FOLDER / name).read_text()
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in NAMES, f"{name} imports {imported}"


def test_files_are_asked_for_again_by_their_tags(client: httpx.Client) -> None:
    for path in ("/", "/playground/main.js"):
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers={"If-None-Match": '"other"'}).content == first.content


def test_media_types_are_those_of_the_files(client: httpx.Client) -> None:
    types = {name: client.get(f"/playground/{name}").headers["content-type"] for name in NAMES}
    assert types["main.js"] == "text/javascript; charset=utf-8"
    assert types["base.css"] == "text/css; charset=utf-8"
    assert types["favicon.svg"] == "image/svg+xml"


@pytest.mark.parametrize(
    "name", ["../playground.py", "..%2Fplayground.py", "%2e%2e/auth.py", "package.json", "nothing.js", ""]
)
def test_nothing_beside_the_page_can_be_had(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/playground/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_without_the_page_people_are_sent_to_the_documentation() -> None:
    with serving(FakeEngine(), Edge(playground=False)) as url:
        answer = httpx.get(url, headers={"Accept": BROWSER})
        assert (answer.status_code, answer.headers["location"]) == (303, "docs")
        assert answer.headers["vary"] == "Accept"
        assert httpx.get(f"{url}/playground/main.js").status_code == 404


def test_documentation_on_another_port_is_not_linked(client: httpx.Client) -> None:
    assert 'href="docs"' in client.get("/").text
    with serving(FakeEngine(), Edge(ops_apart=True)) as url:
        page = httpx.get(url, headers={"Accept": BROWSER})
        assert 'href="docs"' not in page.text
        assert page.headers["etag"] != client.get("/").headers["etag"]


def test_files_of_the_page_keep_their_size() -> None:
    for name in NAMES:
        if name.endswith(".js"):
            text = (FOLDER / name).read_text()
            assert len(text.splitlines()) <= 400, name
            assert text.startswith("/**"), f"{name} says what it is"


@needs_node
def test_the_parts_that_need_no_browser_pass_their_own_tests() -> None:
    tests = sorted(str(path) for path in TESTS.glob("*.test.mjs"))
    ended = subprocess.run(
        ["node", "--test", *tests], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout
    assert "# skipped 0" in ended.stdout


@needs_node
def test_the_page_knows_the_limits_of_the_api() -> None:
    script = (
        f'import * as sizes from "{FOLDER}/sizes.js"; import * as request from "{FOLDER}/request.js";'
        "console.log(JSON.stringify({...sizes, ...request}))"
    )
    command = ["node", "--input-type=module", "-e", script]
    known = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    limits = {name: value for name, value in known.items() if isinstance(value, int)}
    assert {"MIN_SIDE", "MAX_SEED", "MAX_IMAGES", "MAX_PREVIEWS"} <= limits.keys()
    for name, value in limits.items():
        assert getattr(generation, name) == value, name
    page = (FOLDER / "index.html").read_text()
    assert f'min="{generation.MIN_SIDE}" max="{generation.MAX_SIDE}"' in page, SIDE_RULE
    assert f'max="{generation.MAX_SEED}"' in page
    assert f'max="{generation.MAX_DEADLINE_MS}"' in page
