"""The page at `/` in a browser, with a fake engine: what it does where something is wrong or asked for."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from server.app import Edge
from server.http.auth import Door
from server.keys import KeysFile, create
from tests.e2e.browser import Visit, needs_chromium
from tests.server.http.fake_engine import FakeEngine, serving
from tests.server.models import MODEL

PHONE = ViewportSize(width=390, height=844)
pytestmark = needs_chromium


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
    visit.expected.add("422")


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
    expect(again).to_have_text(re.compile(r"Try again in [78] s"))
    expect(visit.page.locator(".run-state")).to_have_text("The backlog is 31.0 s.")
    again.click()
    expect(again).to_have_text(re.compile(r"Tries again in \d s"))
    assert len(engine.requests) == 1
    visit.page.clock.run_for(8000)
    expect(again).to_have_text(re.compile(r"Try again in \d s"))
    assert len(engine.requests) == 2
    visit.expected.add("429")


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
    visit.expected.add("503")


def test_a_server_that_is_gone_is_looked_for(visit: Visit) -> None:
    visit.page.clock.install()
    with serving(FakeEngine()) as url:
        visit.open(url)
        expect(visit.page.locator("#state")).to_have_text(re.compile("Ready|Busy"))
    visit.page.clock.run_for(3000)
    expect(visit.page.locator("#state")).to_have_text("The server is gone. Looking again")
    visit.generate("a")
    expect(visit.page.locator(".run-state")).to_have_text("The server does not answer.")
    visit.expected.add("ERR_CONNECTION_REFUSED")


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
    visit.expected.add("401")


def test_a_picture_that_the_browser_cannot_keep_is_shown_all_the_same(
    fake: tuple[FakeEngine, str], visit: Visit
) -> None:
    visit.page.add_init_script(
        "IDBObjectStore.prototype.add = () => { throw new DOMException('full', 'QuotaExceededError') }"
    )
    visit.open(fake[1])
    visit.generate("a", num_images=2)
    visit.finished(2)
    expect(visit.page.locator(".thumb")).to_have_count(2)
    expect(visit.page.locator("#notices")).to_contain_text("no room for the picture")


def test_what_is_dropped_and_no_picture_is_refused_in_words(
    fake: tuple[FakeEngine, str], visit: Visit
) -> None:
    visit.open(fake[1])
    expect(visit.page.locator("#state")).to_have_text(re.compile("Ready|Busy"))
    visit.page.evaluate(
        """() => {
            const given = new DataTransfer();
            given.items.add(new File(["words"], "letter.txt", {type: "text/plain"}));
            document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer: given}));
        }"""
    )
    expect(visit.page.locator("#notices")).to_have_text("That file is no picture")


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


def test_a_phone_has_all_of_it_in_its_width_in_light_and_dark(
    fake: tuple[FakeEngine, str], browser: Browser
) -> None:
    context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="light")
    page = context.new_page()
    page.goto(fake[1])
    page.locator("#options summary").first.tap()
    page.locator("#more summary").tap()
    page.get_by_role("button", name="Generate").tap()
    page.get_by_role("button", name="Start from it").tap()
    expect(page.locator("#editor")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    light = brightness(page)
    page.emulate_media(color_scheme="dark")
    assert brightness(page) < 100 < light
    page.get_by_role("button", name="Colours").tap()
    assert brightness(page) == light, "a person's choice goes before that of the device"
    page.reload()
    assert brightness(page) == light
    context.close()


def brightness(page: Page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
