"""The page at `/` in a browser: with the real server where pictures matter, with a fake engine elsewhere."""

import base64
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import (
    Browser,
    FilePayload,
    Locator,
    Page,
    Request,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)

from server.app import Edge
from server.http.auth import Door
from server.keys import KeysFile, create
from tests.e2e.conftest import Server
from tests.server.http.fake_engine import FakeEngine, serving, wait_until
from tests.server.models import MODEL

CHROMIUM = shutil.which("chromium")
DESKTOP, PHONE = ViewportSize(width=1280, height=900), ViewportSize(width=390, height=844)
WITHIN_MS = 20_000
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
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not there: .ci/run installs it by apt")
expect.set_options(timeout=WITHIN_MS)


@dataclass
class Visit:
    """A page in a browser that remembers nothing from before, and what went wrong on it."""

    page: Page
    wrong: list[str] = field(default_factory=list)
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

    def forgive(self, words: str) -> None:
        """Take back failures that a test has caused: a browser notes every answer that is not 200."""
        assert any(words in each for each in self.wrong), self.wrong
        self.wrong = [each for each in self.wrong if words not in each]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Nothing may go wrong on a page, and nobody but its own server may be asked for anything."""
    context = browser.new_context(viewport=DESKTOP, reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    made = Visit(context.new_page())

    def note(request: Request) -> None:
        if request.url.startswith("http"):
            made.origins.add("/".join(request.url.split("/")[:3]))

    made.page.on("console", lambda said: made.wrong.append(said.text) if said.type == "error" else None)
    made.page.on("pageerror", lambda error: made.wrong.append(str(error)))
    made.page.on("request", note)
    yield made
    context.close()
    assert made.wrong == []
    assert len(made.origins) == 1, made.origins


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
    wait_until(lambda: httpx.get(f"{server.url}/v1/status").json()["queue"]["backlog_s"] == 0)
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


def test_only_what_is_painted_is_drawn_anew(server: Server, visit: Visit) -> None:
    visit.open(server.url)
    page = visit.page
    visit.generate("a blue house in a meadow", seed=3)
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
    visit.generate("a blue house in a meadow", seed=3)
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
    broken = FilePayload(name="no.png", mimeType="image/png", buffer=b"no picture")
    page.locator("#image-file").set_input_files(broken)
    expect(page.locator("#notices")).to_contain_text("cannot read that file")
    for event in ("drop", "paste"):
        page.get_by_role("button", name="Remove the picture").click()
        expect(page.locator("#editor")).to_be_hidden()
        page.evaluate(GIVE, event)
        expect(page.locator("#whole-size")).to_have_text(f"512 {TIMES} 256")


def test_what_is_copied_makes_the_same_picture(server: Server, visit: Visit, tmp_path: Path) -> None:
    visit.open(server.url)
    page = visit.page
    visit.generate("a 'red' \"boat\" for $HOME, `date` \\ 5%", seed=9)
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


@pytest.fixture
def fake() -> Iterator[tuple[FakeEngine, str]]:
    engine = FakeEngine()
    with serving(engine) as url:
        yield engine, url


def test_what_is_wrong_is_said_at_its_field(fake: tuple[FakeEngine, str], visit: Visit) -> None:
    visit.open(fake[1])
    page = visit.page
    visit.generate("a")
    visit.finished()
    more, guidance = page.locator("#more summary"), page.get_by_label("Guidance", exact=True)
    more.click()
    guidance.fill("99")
    more.click()
    visit.generate("a")
    expect(guidance).to_be_focused()
    expect(guidance).to_have_attribute("aria-invalid", "true")
    expect(guidance).to_have_accessible_description(re.compile("guidance_scale is 99.*allowed.*0 to 20"))
    expect(page.locator("#stage [data-shows=picture]")).to_have_count(1)
    visit.generate("a", guidance_scale=2)
    expect(page.locator(".thumb")).to_have_count(2)
    expect(guidance).not_to_have_attribute("aria-invalid", "true")
    visit.forgive("422")


def test_a_failure_without_a_field_is_said_where_the_picture_would_be(
    fake: tuple[FakeEngine, str], visit: Visit
) -> None:
    visit.open(fake[1])
    visit.generate("then generation_failed")
    expect(visit.page.locator(".run-state")).to_have_text("The picture holds NaN.")
    visit.page.get_by_role("button", name="Dismiss").click()
    expect(visit.page.locator(".run")).to_have_count(0)


def test_who_is_refused_may_come_back_when_it_is_time(fake: tuple[FakeEngine, str], visit: Visit) -> None:
    engine, url = fake
    visit.page.clock.install()
    visit.open(url)
    visit.generate("overloaded")
    again = visit.page.locator(".run-foot .button").first
    expect(again).to_have_text("Try again in 8 s")
    expect(visit.page.locator(".run-state")).to_have_text("The backlog is 31.0 s.")
    again.click()
    expect(again).to_have_text(re.compile(r"Tries again in \d s"))
    assert len(engine.requests) == 1
    visit.page.clock.run_for(8000)
    expect(again).to_have_text("Try again in 8 s")
    assert len(engine.requests) == 2
    visit.forgive("429")


def test_a_request_waits_for_a_model_that_is_being_loaded(fake: tuple[FakeEngine, str], visit: Visit) -> None:
    engine, url = fake
    engine.model_info = None
    visit.page.clock.install()
    visit.open(url)
    expect(visit.page.locator("#state")).to_have_text("The model is being loaded")
    visit.generate("a")
    expect(visit.page.locator(".run-state")).to_have_text("The model is being loaded")
    engine.model_info = MODEL
    visit.page.clock.run_for(6000)
    visit.finished()
    expect(visit.page.locator("#state")).to_have_text(re.compile("Ready|Busy"))
    visit.forgive("503")


def test_a_server_that_is_gone_is_looked_for(visit: Visit) -> None:
    visit.page.clock.install()
    with serving(FakeEngine()) as url:
        visit.open(url)
        expect(visit.page.locator("#state")).to_have_text(re.compile("Ready|Busy"))
    visit.page.clock.run_for(3000)
    expect(visit.page.locator("#state")).to_have_text("The server is gone. Looking again")
    visit.generate("a")
    expect(visit.page.locator(".run-state")).to_have_text("The server does not answer.")
    visit.forgive("ERR_CONNECTION_REFUSED")


def test_a_key_is_asked_for_and_kept_only_if_that_is_wished(visit: Visit, tmp_path: Path) -> None:
    secret = create(tmp_path / "keys.toml", "person")
    with serving(FakeEngine(), Edge(door=Door(KeysFile.read(tmp_path / "keys.toml")))) as url:
        visit.open(url)
        page = visit.page
        dialog = page.get_by_role("dialog", name="This server asks for a key")

        def give(key: str) -> None:
            dialog.get_by_label("API key").fill(key)
            dialog.get_by_role("button", name="Use this key").click()

        expect(dialog).to_be_visible()
        give("wrong")
        expect(page.locator("#key-error")).to_have_text(re.compile("not one of this server's"))
        give(secret)
        expect(dialog).to_be_hidden()
        visit.generate("a")
        visit.finished()
        page.locator(".run").get_by_role("button", name="Python").click()
        code = page.evaluate("navigator.clipboard.readText()")
        assert secret not in code
        assert "SCHNELL_API_KEY" in code
        page.reload()
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#state")).to_have_text("It asks for a key")
        page.get_by_role("button", name="API key").click()
        dialog.get_by_label("Remember it on this device").check()
        give(secret)
        expect(page.locator("#state")).to_have_text(re.compile("Ready|Busy"))
        page.reload()
        expect(page.locator("#state")).to_have_text(re.compile("Ready|Busy"))
        page.get_by_role("button", name="API key").click()
        dialog.get_by_role("button", name="Forget it").click()
        page.reload()
        expect(dialog).to_be_visible()
    visit.forgive("401")


def test_loras_of_the_server_can_be_chosen(fake: tuple[FakeEngine, str], visit: Visit) -> None:
    page = visit.page
    listed = {"data": [{"id": "flux"}, {"id": "sketch", "parent": "flux"}, {"id": "ink", "parent": "flux"}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    page.route("**/v1/generate", lambda route: route.fulfill(content_type="text/event-stream", body=""))
    visit.open(fake[1])
    page.get_by_label("sketch", exact=True).check()
    page.get_by_label("Scale of sketch").fill("0.5")
    with page.expect_request("**/v1/generate") as asked:
        visit.generate("a")
    assert asked.value.post_data_json["loras"] == [{"name": "sketch", "scale": 0.5}]
    expect(page.locator(".run-state")).to_have_text("The connection to the server broke off.")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".run")).to_have_count(0)


def test_a_proxy_may_have_put_a_path_in_front(fake: tuple[FakeEngine, str], visit: Visit) -> None:
    def take_off(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/flux/", "/", 1)))

    visit.page.route("**/flux/**", take_off)
    visit.open(f"{fake[1]}/flux/")
    visit.generate("a")
    visit.finished()
    visit.page.get_by_role("button", name="curl").click()
    assert f"{fake[1]}/flux/v1/generate" in visit.page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_all_of_it_in_its_width(
    fake: tuple[FakeEngine, str], browser: Browser, scheme: str
) -> None:
    context = browser.new_context(
        viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    page.goto(fake[1])
    page.locator("#options summary").first.tap()
    page.locator("#more summary").tap()
    page.get_by_role("button", name="Generate").tap()
    page.get_by_role("button", name="Start from it").tap()
    expect(page.locator("#editor")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    page.get_by_role("button", name="Colours").tap()
    page.get_by_role("button", name="Colours").tap()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    context.close()
