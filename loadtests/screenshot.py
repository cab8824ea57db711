"""The page of a running server after some pictures, as the README shows it; needs chromium.

`make serve`, then `python -m loadtests.screenshot docs/playground.png`.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

EARLIER = (  # what the gallery has: prompt, width, height, seed
    ("three pink hearts on a white background", 256, 256, 4),
    ("a rocket in the night sky", 256, 256, 6),
    ("a golden crescent next to a white cloud under the stars", 256, 256, 8),
    ("a grey robot at sunset", 256, 256, 9),
    ("a pink flower on a gradient from yellow to green", 256, 256, 3),
    ("a small white moon at night", 256, 256, 5),
    ("a red boat on the sea at sunset", 384, 256, 1),
    ("a large orange fish on a cyan background", 256, 256, 2),
    ("a yellow sun over a grey mountain in the sky", 256, 256, 7),
)
LATEST = ("a blue house in a meadow", 256, 256, 10)
PICTURES = 3
WINDOW = ViewportSize(width=1200, height=820)
WITHIN_MS = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.screenshot", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--hide-scrollbars"]
        )
        page = browser.new_page(viewport=WINDOW, color_scheme="light", reduced_motion="reduce")
        page.goto(options.url)
        expect(page.locator("#state")).to_have_text("Ready", timeout=WITHIN_MS)
        for count, (prompt, width, height, seed) in enumerate(EARLIER, start=1):
            generate(page, prompt, width, height, seed)
            expect(page.locator(".thumb")).to_have_count(count, timeout=WITHIN_MS)
        page.locator("[name=num_images]").fill(str(PICTURES))
        generate(page, *LATEST)
        expect(page.locator(".thumb")).to_have_count(len(EARLIER) + PICTURES, timeout=WITHIN_MS)
        page.locator("[name=seed]").blur()
        shot = page.screenshot()
        browser.close()
    with Image.open(io.BytesIO(shot)) as picture:
        picture.convert("RGB").save(options.file, optimize=True)


def generate(page: Page, prompt: str, width: int, height: int, seed: int) -> None:
    fields = {"prompt": prompt, "width": width, "height": height, "seed": seed}
    for name, value in fields.items():
        page.locator(f"[name={name}]").fill(str(value))
    page.keyboard.press("Control+Enter")


if __name__ == "__main__":
    main()
