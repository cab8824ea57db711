"""JSON with pictures, written in pieces: the same bytes as in one go, and others run in between."""

import asyncio
import base64
import json
from typing import Any

import pytest
from fastapi.responses import StreamingResponse

from server.http.pictures import PIECE_BYTES, Picture, pictures_response


def body_of(response: Any) -> bytes:
    assert isinstance(response, StreamingResponse)

    async def collect() -> bytes:
        return b"".join([bytes(piece) async for piece in response.body_iterator])

    body = asyncio.run(collect())
    assert int(response.headers["content-length"]) == len(body)
    assert response.headers["content-type"] == "application/json"
    return body


@pytest.mark.parametrize(
    "size", [0, 1, 2, 3, 4, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 2]
)
def test_pieces_join_to_the_base64_of_the_whole(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    content = {"first": Picture(data[:size]), "rest": [1, {"again": Picture(data[:size], prefix="data:x,")}]}
    text = base64.b64encode(data[:size]).decode()
    assert json.loads(body_of(pictures_response(content))) == {
        "first": text,
        "rest": [1, {"again": f"data:x,{text}"}],
    }


def test_content_without_pictures_and_with_odd_characters_is_itself() -> None:
    content = {"a": '\0"\\\u2028é', "b": [None, 1.5, "\0"], "c": Picture(b"x")}
    assert json.loads(body_of(pictures_response(content))) == content | {"c": "eA=="}
    assert json.loads(body_of(pictures_response({"a": "\0"}))) == {"a": "\0"}


def test_others_run_while_a_large_answer_is_encoded() -> None:
    async def turns_of_another() -> int:
        turns = 0

        async def another() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(another())
        response = pictures_response([Picture(bytes(20 * PIECE_BYTES))])
        assert isinstance(response, StreamingResponse)
        async for _ in response.body_iterator:
            pass
        task.cancel()
        return turns

    assert asyncio.run(turns_of_another()) >= 20
