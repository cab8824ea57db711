"""A browser on the page at `/`, and what went wrong there; not a module of tests."""

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, ViewportSize, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
DESKTOP = ViewportSize(width=1280, height=900)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not there: .ci/run installs it by apt"
)
expect.set_options(timeout=20_000)


@dataclass
class Visit:
    """A page in a browser that remembers nothing from before, and what went wrong on it.

    A browser notes every answer that is a failure: a test says which ones it causes, in words of the note.
    """

    page: Page
    wrong: list[str] = field(default_factory=list)
    expected: set[str] = field(default_factory=set)
    origins: set[str] = field(default_factory=set)

    def open(self, url: str) -> None:
        self.page.goto(url)

    def generate(self, prompt: str, **fields: object) -> None:
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        for name, value in fields.items():
            self.page.locator(f"[name={name}]").fill(str(value))
        self.page.get_by_role("button", name="Generate").click()

    def finished(self, count: int = 1) -> Locator:
        """Wait until so many pictures of the stage are done."""
        done = self.page.locator("#stage [data-shows=picture] img")
        expect(done).to_have_count(count)
        return done

    def check(self) -> None:
        """Nothing else may have gone wrong, and nobody but its own server may have been asked."""
        assert all(any(words in each for words in self.expected) for each in self.wrong), self.wrong
        assert all(any(words in each for each in self.wrong) for words in self.expected), self.expected
        assert len(self.origins) == 1, self.origins


@contextmanager
def launched() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Browser) -> Iterator[Visit]:
    """Open a page that knows nothing of others; raises where something went wrong on it."""
    context = browser.new_context(viewport=DESKTOP, reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit = Visit(context.new_page())

    def note(request: Request) -> None:
        if request.url.startswith("http"):
            visit.origins.add("/".join(request.url.split("/")[:3]))

    visit.page.on("console", lambda said: visit.wrong.append(said.text) if said.type == "error" else None)
    visit.page.on("pageerror", lambda error: visit.wrong.append(str(error)))
    visit.page.on("request", note)
    yield visit
    context.close()
    visit.check()


def pixels(image: Locator) -> np.ndarray:
    """Read what an <img> shows: [height, width, 3]."""
    drawn = image.evaluate(
        """async image => {
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
            canvas.getContext("2d").drawImage(image, 0, 0);
            const bytes = new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer());
            return btoa(Array.from(bytes, each => String.fromCharCode(each)).join(""));
        }"""
    )
    with Image.open(io.BytesIO(base64.b64decode(drawn))) as file:
        return np.asarray(file.convert("RGB")).astype(int)


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=6)
    page.mouse.up()


def point(box: Locator, across: float, down: float) -> tuple[float, float]:
    """Return a point of a box on the screen, as parts of its width and height."""
    expect(box).to_be_visible()
    found = box.bounding_box()
    assert found is not None
    return found["x"] + across * found["width"], found["y"] + down * found["height"]
