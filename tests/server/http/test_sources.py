"""Pictures as input of the native API: what a client sends is what the engine starts from, or is refused."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import Request
from PIL import Image

from server.app import Edge
from server.caller import Caller
from server.decoders import Decoders
from server.decoding import Answer, Decode
from server.errors import InvalidRequest, Overloaded
from server.generation import MAX_SIDE, Source
from server.http.auth import Door
from server.http.exchange import SCOPE_KEY, ClientGone, Exchange
from server.http.input_pictures import InputPicture
from server.http.outputs import Outputs
from server.http.own_files import OwnFiles
from server.http.room import FREE_BYTES, Room
from server.http.sources import Sources, Start
from server.image_urls import ImageUrls
from server.keys import KeysFile, create
from server.picture_files import PictureFiles
from server.quotas import Quotas
from server.uploads import Uploads
from tests.server.decoder.pictures import bomb, file_of, gradient
from tests.server.engines import request, run
from tests.server.http.fake_engine import FakeEngine, serving

SIZE = (320, 256)


def address(image: Image.Image, kind: str = "PNG") -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file_of(image, kind)).decode()}"


def disc() -> Image.Image:
    mask = Image.new("L", SIZE)
    mask.paste(255, (64, 64, 128, 128))
    return mask


def source(engine: FakeEngine) -> Source:
    found = engine.last().source
    assert found is not None
    return found


def test_a_picture_is_where_the_model_starts(client: httpx.Client, engine: FakeEngine) -> None:
    answer = client.post("/v1/generate", json={"prompt": "a", "image": address(gradient(*SIZE))})
    assert answer.status_code == 200
    assert source(engine) == Source(pixels=gradient(*SIZE).tobytes(), strength=0.6)
    assert (engine.last().width, engine.last().height) == SIZE
    said = answer.json()
    assert (said["num_inference_steps"], said["run_steps"], answer.headers["x-steps"]) == (4, 3, "3")


@pytest.mark.parametrize(
    ("strength", "steps", "run"),
    [(0.01, 4, 1), (0.3, 4, 2), (0.75, 4, 3), (0.8, 4, 4), (1, 12, 12), (0.5, 1, 1)],
)
def test_the_answer_says_how_many_steps_ran(
    client: httpx.Client, engine: FakeEngine, strength: float, steps: int, run: int
) -> None:
    body = {"prompt": "a", "image": address(gradient()), "strength": strength, "num_inference_steps": steps}
    answer = client.post("/v1/generate", json=body)
    assert (answer.json()["num_inference_steps"], answer.json()["run_steps"]) == (steps, run)
    assert answer.headers["x-steps"] == str(run)
    assert source(engine).strength == strength


def test_the_size_that_is_asked_for_is_made(client: httpx.Client, engine: FakeEngine) -> None:
    for asked, made in (({"width": 512}, (512, 416)), ({"width": 256, "height": 512}, (256, 512))):
        client.post("/v1/generate", json={"prompt": "a", "image": address(gradient(*SIZE))} | asked)
        assert (engine.last().width, engine.last().height) == made
        assert len(source(engine).pixels) == made[0] * made[1] * 3


def test_a_mask_says_what_is_drawn_anew(client: httpx.Client, engine: FakeEngine) -> None:
    body = {"prompt": "a", "image": address(gradient(*SIZE)), "mask_image": address(disc())}
    assert client.post("/v1/generate", json=body).status_code == 200
    assert source(engine).mask == source(engine).blend == disc().tobytes()
    client.post("/v1/generate", json=body | {"preserve": False})
    assert (source(engine).mask, source(engine).blend) == (disc().tobytes(), None)


def test_borders_extend_the_picture(client: httpx.Client, engine: FakeEngine) -> None:
    body = {"prompt": "a", "image": address(gradient(*SIZE)), "outpaint": {"left": 64, "bottom": 32}}
    assert client.post("/v1/generate", json=body).status_code == 200
    assert (engine.last().width, engine.last().height) == (384, 288)
    found = source(engine)
    assert found.strength == 1
    assert found.mask is not None
    assert found.blend is not None
    assert found.mask[0] == found.blend[0] == 255
    client.post("/v1/generate", json=body | {"outpaint": {}, "strength": 0.5})
    assert (source(engine).mask, engine.last().width) == (None, 320)


def test_a_form_says_the_same_as_json(client: httpx.Client, engine: FakeEngine) -> None:
    fields = {"prompt": "a", "seed": 7, "strength": 0.25, "preserve": False, "outpaint": {"right": 64}}
    pictures = {"image": gradient(*SIZE), "mask_image": disc()}
    by_json = fields | {name: address(image) for name, image in pictures.items()}
    assert client.post("/v1/generate", json=by_json).status_code == 200
    asked = engine.last()
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    files = {name: (f"{name}.png", file_of(image), "image/png") for name, image in pictures.items()}
    assert client.post("/v1/generate", data=texts, files=files).status_code == 200
    assert engine.last() == asked


def test_a_form_needs_no_picture_and_may_give_one_as_text(client: httpx.Client, engine: FakeEngine) -> None:
    for parts in (
        {"prompt": "a", "seed": "3", "num_inference_steps": "auto"},
        {"prompt": "a", "embed_prompt": "true"},
    ):
        answer = client.post("/v1/generate", files={name: (None, text) for name, text in parts.items()})
        assert answer.status_code == 200
        assert engine.last().source is None
    assert (
        client.post("/v1/generate", files={"prompt": (None, "a"), "image": (None, PICTURE)}).status_code
        == 200
    )
    assert source(engine).pixels == gradient().tobytes()


def test_a_file_that_nobody_chose_is_none(client: httpx.Client, engine: FakeEngine) -> None:
    parts = ('name="prompt"\r\n\r\na', 'name="image"; filename=""\r\n\r\n')
    body = "".join(f"--x\r\nContent-Disposition: form-data; {part}\r\n" for part in parts) + "--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/generate", content=body, headers=kind).status_code == 200
    assert engine.last().source is None


def test_a_form_is_checked_like_json(client: httpx.Client) -> None:
    for parts, field, message in (
        ([("prompt", "a"), ("seed", "x")], "seed", 'seed is "x"; allowed: a whole number'),
        ([("prompt", "a"), ("colour", "x")], "colour", "colour is not a field"),
        ([("prompt", "a"), ("prompt", "b")], "prompt", "prompt is given 2 times; allowed: once"),
        ([("prompt", "a"), ("outpaint", "x")], "outpaint", 'outpaint is "x"; allowed: an object'),
        ([("prompt", "a"), ("outpaint", '{"left": -1}')], "outpaint.left", "outpaint.left is -1; allowed"),
        ([("seed", "1")], "prompt", "prompt is missing"),
    ):
        answer = client.post("/v1/generate", files=[(name, (None, text)) for name, text in parts])
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (422, field)
        assert error["message"].startswith(message)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"no form at all",
        b"--x\r\n\r\n\r\n--x--",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na',
    ],
)
def test_a_form_that_is_none_is_the_fault_of_who_sent_it(client: httpx.Client, body: bytes) -> None:
    for boundary in ("; boundary=x", "", "; boundary=" + "y" * 5000, "; charset=nonsense; boundary=x"):
        kind = {"Content-Type": f"multipart/form-data{boundary}"}
        answer = client.post("/v1/generate", content=body, headers=kind)
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["type"] == "invalid_request_error"


PICTURE = address(gradient())
BODIES: list[tuple[dict[str, Any], str, str]] = [
    ({"image": 5}, "image", "image is 5"),
    ({"image": "a cat"}, "image", 'image is "a cat"; allowed: a picture (PNG, JPEG or WebP) as data:'),
    ({"image": PICTURE.partition(",")[2]}, "image", "characters); allowed: a picture"),
    ({"image": "data:image/png,%89PNG"}, "image", "allowed: a picture"),
    ({"image": "data:image/png;base64,@@@"}, "image", "image is text of 3 characters that is not base64"),
    ({"image": "data:;base64,"}, "image", "image is empty"),
    (
        {"image": "data:image/png;base64,AAAA"},
        "image",
        "image is a file of another kind; allowed: a PNG, JPEG",
    ),
    (
        {"image": "data:image/png;base64," + base64.b64encode(bomb(14_000)).decode()},
        "image",
        "14000x14000 pixels",
    ),
    ({"image": PICTURE[:-600]}, "image", "cannot be decoded"),
    (
        {"image": PICTURE, "mask_image": "data:;base64,AAAA"},
        "mask_image",
        "mask_image is a file of another kind",
    ),
    ({"image": PICTURE, "strength": 0}, "strength", "strength is 0; allowed: a number from 0.01 to 1"),
    ({"image": PICTURE, "strength": 1.01}, "strength", "strength is 1.01; allowed: a number from 0.01 to 1"),
    ({"image": PICTURE, "outpaint": {"left": MAX_SIDE + 1}}, "outpaint.left", "from 0 to 1536"),
    ({"image": PICTURE, "outpaint": {"up": 1}}, "outpaint.up", "is not a field"),
    ({"image": PICTURE, "outpaint": {"left": 1}, "width": 512}, "width", "width is 512 beside outpaint"),
    ({"strength": 0.5}, "strength", "strength is given without image"),
    ({"mask_image": PICTURE}, "mask_image", "mask_image is given without image"),
    ({"outpaint": {}}, "outpaint", "outpaint is given without image"),
    ({"preserve": True}, "preserve", "preserve is given without image"),
    ({"image": "https://example.com/cat.png"}, "image", "since --allow-image-urls is off"),
]


@pytest.mark.parametrize(("body", "field", "message"), BODIES, ids=lambda value: repr(value)[:50])
def test_what_cannot_be_started_from_is_refused(
    client: httpx.Client, engine: FakeEngine, body: dict[str, Any], field: str, message: str
) -> None:
    before = len(engine.requests)
    answer = client.post("/v1/generate", json={"prompt": "a"} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, field)
    assert message in error["message"]
    assert len(error["message"]) < 300
    assert len(engine.requests) == before


def test_a_stream_says_how_many_steps_ran(client: httpx.Client) -> None:
    body = {"prompt": "a", "image": PICTURE, "strength": 0.3}
    text = client.post("/v1/generate", json=body, headers={"Accept": "text/event-stream"}).text
    assert '"run_steps":2' in text.partition("event: done")[2]


def test_a_retry_with_another_picture_is_another_request(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "pictures"}
    bodies = [{"prompt": "a", "image": address(gradient(width))} for width in (256, 256, 272)]
    answers = [client.post("/v1/generate", json=body, headers=headers) for body in bodies]
    assert [answer.status_code for answer in answers] == [200, 200, 422]
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert answers[0].content == answers[1].content


def test_urls_are_fetched_where_the_server_allows_it() -> None:
    engine = FakeEngine()
    settings = {"allow_image_urls": True, "image_url_allow_networks": "127.0.0.1", "output": "url"}
    with serving(engine, **settings) as url, serving(FakeEngine(), output="url") as other:
        made = httpx.post(
            f"{other}/v1/models/a/b/predictions",
            json={"input": {"prompt": "a", "output_format": "png", "megapixels": "0.25"}},
            headers={"Prefer": "wait"},
        ).json()
        body = {"prompt": "a", "image": made["output"][0], "mask_image": made["output"][0]}
        assert httpx.post(f"{url}/v1/generate", json=body).status_code == 200
        assert source(engine).mask is not None
        answer = httpx.post(f"{url}/v1/generate", json=body | {"image": f"{other}/livez"})
        assert 'answers with "text/plain' in answer.json()["error"]["message"]


def test_pictures_by_url_are_together_no_longer_than_a_body() -> None:
    noise = Image.effect_noise((900, 700), 100)
    with serving(FakeEngine(), max_body_mb=1) as url, httpx.Client(base_url=url) as small:
        urls = [
            small.post("/v1/files", files={"content": ("a.png", file_of(noise))}).json()["urls"]["get"]
            for _ in range(2)
        ]
        body = {"prompt": "a", "image": urls[0], "mask_image": urls[1]}
        error = small.post("/v1/generate", json=body).json()["error"]
    assert error["param"] == "mask_image"
    assert error["message"].startswith("mask_image and image are ")
    assert error["message"].endswith(" bytes together; allowed: at most 1048576")


def test_for_a_key_over_its_limits_nothing_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    headers = {"Authorization": f"Bearer {create(file, 'often', requests_per_minute=1)}"}
    nothing = {"prompt": "a", "image": "data:;base64,"}
    with serving(FakeEngine(), Edge(door=Door(KeysFile.read(file)))) as url:
        assert httpx.post(f"{url}/v1/generate", json={"prompt": "a"}, headers=headers).status_code == 200
        refused = httpx.post(f"{url}/v1/generate", json=nothing, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert refused.headers["ratelimit"].startswith('"requests";r=0')


def test_who_leaves_while_a_picture_is_decoded_waits_for_it_no_longer() -> None:
    async def story() -> None:
        asked, ended = asyncio.Event(), asyncio.Event()

        class Slow:
            async def decode(self, question: Decode) -> Answer:
                asked.set()
                try:
                    return await asyncio.Future()
                finally:
                    ended.set()

        async def leave() -> dict[str, str]:
            await asked.wait()
            return {"type": "http.disconnect"}

        scope = {
            "type": "http",
            SCOPE_KEY: Exchange("a", max_body_bytes=1 << 20, caller=Caller(None, Quotas())),
        }
        urls = ImageUrls(None, limit_bytes=1 << 20)
        sources = Sources(cast(Decoders, Slow()), urls, cast(OwnFiles, None))
        with pytest.raises(ClientGone):
            await sources.begin(Request(scope, leave), request(), Start(image=InputPicture(PICTURE)))
        assert ended.is_set()

    run(story)


def test_a_url_that_is_refused_anyway_takes_no_room(tmp_path: Path) -> None:
    async def story() -> None:
        room = Room(0)
        room.wait_s = 0.01
        urls = ImageUrls(None, limit_bytes=FREE_BYTES + 1)
        files = PictureFiles(tmp_path, lifetime_s=1)
        own = OwnFiles(Outputs(files, public_url="https://pictures"), cast(Uploads, None))
        exchange = Exchange("a", max_body_bytes=1, room=room, caller=Caller(None, Quotas()))
        http = Request({"type": "http", SCOPE_KEY: exchange}, asyncio.Queue[dict[str, str]]().get)
        sources = Sources(cast(Decoders, None), urls, own)
        with pytest.raises(InvalidRequest, match="since --allow-image-urls is off"):
            await sources.begin(http, request(), Start(image=InputPicture("https://elsewhere/cat.png")))
        with pytest.raises(Overloaded):
            await sources.begin(http, request(), Start(image=InputPicture("https://pictures/files/cat.png")))

    run(story)


def test_an_empty_upload_is_empty(client: httpx.Client) -> None:
    address = client.post("/v1/files", files={"content": ("a.png", b"")}).json()["urls"]["get"]
    answer = client.post("/v1/generate", json={"prompt": "a", "image": address})
    assert answer.json()["error"]["message"] == "image is empty; allowed: a PNG, JPEG or WebP picture"
