"""The page at `/` in a browser, with the real server: pictures are made, kept, changed and made again."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Page, expect

from tests.e2e.browser import Visit, drag, needs_chromium, pixels, point
from tests.e2e.conftest import Server
from tests.server.http.fake_engine import wait_until

TIMES = "\N{MULTIPLICATION SIGN}"
GIVE = """async name => {
    const canvas = new OffscreenCanvas(512, 256);
    canvas.getContext("2d").fillRect(0, 0, 99, 99);
    const picture = await canvas.convertToBlob();
    const given = new DataTransfer();
    given.items.add(new File([picture], "given.png", {type: "image/png"}));
    const options = {bubbles: true, cancelable: true, dataTransfer: given, clipboardData: given};
    const kind = name === "drop" ? DragEvent : ClipboardEvent;
    document.body.dispatchEvent(new kind(name, options));
}"""
pytestmark = needs_chromium


def test_a_prompt_becomes_pictures_that_are_seen_coming(server: Server, visit: Visit) -> None:
    visit.open(server.url)
    page = visit.page
    expect(page.locator("#state")).to_have_text("Ready")
    page.evaluate(
        """() => {
            window.seen = new Set();
            new MutationObserver(() => {
                for (const each of document.querySelectorAll(".tile figcaption, .run-state"))
                    window.seen.add(each.textContent);
                for (const each of document.querySelectorAll(".picture")) window.seen.add(each.dataset.shows);
            }).observe(document.getElementById("stage"), {childList: true, subtree: true, attributes: true});
        }"""
    )
    visit.generate("a red circle on a blue background", seed=42, num_images=2, num_inference_steps=12)
    images = visit.finished(2)
    seen = page.evaluate("[...window.seen].filter(each => each)")
    assert "preview" in seen
    assert any(re.fullmatch(r"step \d+ of 12", each) for each in seen), seen
    assert any(re.fullmatch(r"Step \d+ of 24 in all, about .+ in all", each) for each in seen), seen
    expect(page.locator(".run-state")).to_have_text(re.compile(r"Done in .+ s, .+ predicted"))
    for number in range(2):
        found = pixels(images.nth(number))
        assert found.shape == (256, 256, 3)
        red, _, blue = found[128, 128]
        assert red > blue, "the circle is in the middle"
        assert found[4, 4, 2] > found[4, 4, 0]
    expect(page.locator(".thumb")).to_have_count(2)


def test_what_is_cancelled_is_worked_on_no_more(server: Server, visit: Visit) -> None:
    visit.open(server.url)
    visit.generate("a cat", width=1024, height=1024, num_inference_steps=12)
    expect(visit.page.locator("figcaption")).to_have_text(re.compile("step|next"))
    visit.page.get_by_role("button", name="Cancel").click()
    expect(visit.page.locator(".run")).to_have_count(0)
    wait_until(lambda: httpx.get(f"{server.url}/v1/status").json()["queue"]["backlog_s"] < 1e-6)
    expect(visit.page.locator(".thumb")).to_have_count(0)


def test_the_gallery_outlives_the_page_and_gives_its_settings_back(server: Server, visit: Visit) -> None:
    visit.open(server.url)
    page = visit.page
    page.get_by_label("JPEG", exact=True).check()
    visit.generate("a green tree", seed=5, width=320, num_inference_steps=2)
    before = pixels(visit.finished())
    page.reload()
    page.locator(".thumb").click()
    expect(page.locator("#lightbox")).to_contain_text("JPEG")
    assert (pixels(page.locator("#lightbox-image")) == before).all()
    page.locator("#lightbox").get_by_role("button", name="Reuse settings").click()
    wanted = {"prompt": "a green tree", "seed": "5", "width": "320", "num_inference_steps": "2"}
    for name, value in wanted.items():
        expect(page.locator(f"[name={name}]")).to_have_value(value)
    expect(page.get_by_label("JPEG", exact=True)).to_be_checked()
    page.locator(".thumb").click()
    page.locator("#lightbox").get_by_role("button", name="Variations").click()
    visit.finished(4)
    seeds = page.locator("#stage .picture").evaluate_all("all => all.map(each => each.ariaLabel)")
    assert [int(label.split()[-1]) for label in seeds] == [6, 7, 8, 9]
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Delete all").click()
    expect(page.locator(".thumb")).to_have_count(0)
    page.reload()
    expect(page.locator("#gallery-empty")).to_be_visible()


def test_a_person_with_a_keyboard_alone_can_do_it_all(server: Server, visit: Visit) -> None:
    visit.open(server.url)
    page = visit.page
    keys = page.keyboard
    page.get_by_label("Prompt", exact=True).focus()
    keys.type("a yellow star")
    for count in (1, 2):
        keys.press("Control+Enter")
        expect(page.locator(".thumb")).to_have_count(count)
    page.locator(".thumb").first.focus()
    keys.press("ArrowRight")
    keys.press("Enter")
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    expect(page.locator("#lightbox-on")).to_be_disabled()
    keys.press("ArrowLeft")
    expect(page.locator("#lightbox-back")).to_be_disabled()
    page.locator("#lightbox").get_by_role("button", name="Delete").focus()
    keys.press("Enter")
    expect(page.locator("#lightbox-on")).to_be_disabled()
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".thumb")).to_have_count(2)
    keys.press("Escape")
    expect(page.locator(".thumb").nth(1)).to_be_focused()
    keys.press("Delete")
    expect(page.locator(".thumb")).to_have_count(1)
    expect(page.locator(".thumb")).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".thumb")).to_have_count(2)
    page.locator(".run").get_by_role("button", name="Start from it").focus()
    keys.press("Enter")
    expect(page.locator("#canvas")).to_be_visible()
    page.locator("#canvas").focus()
    for key in ("ArrowUp", "Shift+ArrowLeft", "Space"):
        keys.press(key)
    expect(page.locator("#mask-undo")).to_be_enabled()
    page.get_by_role("slider", name="Extend right").focus()
    keys.press("ArrowRight")
    expect(page.locator("#whole-size")).to_have_text(f"272 {TIMES} 256")
    keys.press("ArrowLeft")
    keys.press("Control+Enter")
    expect(page.locator(".thumb")).to_have_count(3)


def test_the_gallery_is_in_sight_beside_a_picture(server: Server, visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 1280, "height": 860})
    visit.open(server.url)
    visit.generate("a blue house in a meadow", num_inference_steps=1)
    visit.finished()
    expect(visit.page.locator(".thumb")).to_be_in_viewport(ratio=1)
    picture, actions = (visit.page.locator(name).bounding_box() for name in (".tile", ".run .actions"))
    assert picture
    assert actions
    assert actions["x"] > picture["x"] + picture["width"], "beside it"


def test_only_what_is_painted_is_drawn_anew(server: Server, visit: Visit) -> None:
    visit.open(server.url)
    page = visit.page
    visit.generate("a blue house in a meadow", seed=3, num_inference_steps=1)
    before = pixels(visit.finished())
    page.get_by_role("button", name="Start from it").click()
    canvas = page.locator("#canvas")
    drag(page, point(canvas, 0.2, 0.2), point(canvas, 0.4, 0.2))
    page.locator("#strength").fill("1")
    visit.generate("a red wall", seed=4)
    expect(page.locator(".thumb")).to_have_count(2)
    after = pixels(visit.finished())
    changed = np.abs(after - before).max(axis=-1) > 0
    rows, columns = np.nonzero(changed)
    assert changed[51, 60:100].mean() > 0.9, "the line of the brush"
    assert {*rows} <= {*range(51 - 22, 51 + 22)}, "the brush is 40 pixels wide"
    assert {*columns} <= {*range(51 - 22, 102 + 22)}
    page.locator("#mask-undo").click()
    expect(page.locator("#mask-undo")).to_be_disabled()


def test_handles_extend_the_canvas_and_the_picture_stays(server: Server, visit: Visit) -> None:
    visit.open(server.url)
    page = visit.page
    visit.generate("a blue house in a meadow", seed=3, num_inference_steps=1)
    before = pixels(visit.finished())
    page.get_by_role("button", name="Start from it").click()
    handle = page.locator(".handle.right")
    start = point(handle, 0.5, 0.5)
    drag(page, start, (start[0] + 150, start[1]))
    extent = int(page.locator("#extend-right").input_value())
    assert extent in range(16, 256, 16)
    page.get_by_label("Top", exact=True).fill("40")
    page.get_by_label("Top", exact=True).blur()
    expect(page.locator("#whole-size")).to_have_text(f"{256 + extent} {TIMES} 304")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".thumb")).to_have_count(2)
    after = pixels(visit.finished())
    assert after.shape == (304, 256 + extent, 3)
    kept = after[48 + 64 :, : 256 - 64]
    assert (kept == before[64:, : 256 - 64]).all(), "the seam is at most 64 pixels wide"
    page.locator(".thumb").first.click()
    page.locator("#lightbox").get_by_role("button", name="Reuse settings").click()
    expect(page.locator("#whole-size")).to_have_text(f"{256 + extent} {TIMES} 304")


def test_a_file_becomes_the_input_in_a_size_that_the_model_likes(server: Server, visit: Visit) -> None:
    visit.open(server.url)
    page = visit.page
    expect(page.locator("#state")).to_have_text("Ready")
    file = io.BytesIO()
    Image.new("RGB", (900, 600), "green").save(file, "jpeg")
    chosen = FilePayload(name="green.jpg", mimeType="image/jpeg", buffer=file.getvalue())
    page.locator("#image-file").set_input_files(chosen)
    expect(page.locator("#whole-size")).to_have_text(f"384 {TIMES} 256")
    drag(page, point(page.locator("#canvas"), 0.4, 0.4), point(page.locator("#canvas"), 0.6, 0.4))
    before = painted(page)
    page.get_by_label("Width", exact=True).fill("256")
    page.get_by_label("Width", exact=True).blur()
    expect(page.locator("#whole-size")).to_have_text(f"256 {TIMES} 256")
    assert before > 1000
    assert painted(page) == pytest.approx(before, rel=0.05), "the same mark on a narrower part"
    broken = FilePayload(name="no.png", mimeType="image/png", buffer=b"no picture")
    page.locator("#image-file").set_input_files(broken)
    expect(page.locator("#notices")).to_contain_text("cannot read that file")
    for event in ("drop", "paste"):
        page.get_by_role("button", name="Remove the picture").click()
        expect(page.locator("#editor")).to_be_hidden()
        page.evaluate(GIVE, event)
        expect(page.locator("#whole-size")).to_have_text(f"512 {TIMES} 256")


def painted(page: Page) -> int:
    """Return how many pixels of a green picture are under the veil."""
    return int(
        page.locator("#canvas").evaluate(
            """canvas => {
                const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return data.filter((red, index) => index % 4 === 0 && red > data[index + 1]).length;
            }"""
        )
    )


def test_what_is_copied_makes_the_same_picture(server: Server, visit: Visit, tmp_path: Path) -> None:
    visit.open(server.url)
    page = visit.page
    visit.generate("a 'red' \"boat\" for $HOME, `date` \\ 5%", seed=9, num_inference_steps=1)
    visit.finished()
    page.get_by_role("button", name="Start from it").click()
    canvas = page.locator("#canvas")
    drag(page, point(canvas, 0.2, 0.2), point(canvas, 0.4, 0.2))
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".thumb")).to_have_count(2)
    run = {
        "curl": ["bash", "-eu"],
        "Python": [sys.executable, "-"],
        "JavaScript": ["node", "--input-type=module"],
    }
    for number in range(2):
        page.locator(".thumb").nth(number).click()
        expected = pixels(page.locator("#lightbox-image"))
        for language, command in run.items():
            page.locator("#lightbox").get_by_role("button", name=language).click()
            expect(page.locator("#notices")).to_contain_text(f"Copied as {language}")
            if number == 0 and language == "curl":
                save_inputs(page, tmp_path)
            if shutil.which(command[0]) is None:
                continue
            code = page.evaluate("navigator.clipboard.readText()")
            subprocess.run(command, input=code, cwd=tmp_path, text=True, check=True, timeout=60)
            (written,) = tmp_path.glob("a-*.png")
            with Image.open(written) as file:
                assert (np.asarray(file.convert("RGB")) == expected).all(), language
            written.unlink()
        page.keyboard.press("Escape")


def save_inputs(page: Page, folder: Path) -> None:
    """Save what a copied program reads, as the page offers it."""
    with (
        page.expect_download(lambda each: each.suggested_filename == "input.png") as image,
        page.expect_download(lambda each: each.suggested_filename == "mask.png") as mask,
    ):
        page.get_by_role("button", name="Save").click()
    for download in (image.value, mask.value):
        download.save_as(folder / download.suggested_filename)
