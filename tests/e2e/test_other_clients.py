"""Official clients that this Python cannot import: those of Node, unchanged, and an old openai."""

import json
from typing import Any

from tests.e2e.conftest import Server, run_node, run_with

PNG = {"value": ["png"]}
SIZE = {"value": [256, 272]}  # of the picture that the clients send


def outcomes(script: str, server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_node(script, server.url))
    return found


def test_huggingface_inference(server: Server) -> None:
    found = outcomes("huggingface.mjs", server)
    assert found["defaults"] == found["parameters"] == {"value": {"type": "image/png", "kind": "png"}}
    assert found["webp"] == {"value": {"type": "image/webp", "kind": "webp"}}
    assert found["edited"] == found["editedWithoutWords"] == SIZE
    assert (found["bad"]["error"], found["bad"]["status"]) == ("ProviderApiError", 422)
    assert "parameters.width is 100; allowed: a multiple of 16" in found["bad"]["message"]
    assert found["left"]["error"] == "AbortError"


def test_openai_node(server: Server) -> None:
    found = outcomes("openai.mjs", server)
    assert found["one"] == found["address"] == PNG
    assert found["several"] == {"value": ["jpeg"] * 3}
    assert found["models"]["value"][:2] == ["flux-schnell", "black-forest-labs/FLUX.1-schnell"]
    assert found["model"] == {"value": "black-forest-labs/FLUX.1-schnell"}
    assert found["edited"] == {"value": [[256, 272]] * 2}
    assert found["masked"] == {"value": [[256, 272]]}
    assert found["editStreamed"] == {"value": "image_edit.completed"}
    assert "image is a file of another kind" in found["noPicture"]["message"]
    assert found["streamed"] == {"value": {"last": "image_generation.completed", "kinds": ["png"]}}
    assert (found["unknown"]["error"], found["unknown"]["status"]) == ("NotFoundError", 404)
    assert (found["bad"]["error"], found["bad"]["status"]) == ("BadRequestError", 400)
    assert found["left"]["error"] == "APIUserAbortError"


def test_the_vercel_ai_sdk(server: Server) -> None:
    """It asks for several pictures in requests of one each."""
    for provider, found in outcomes("aisdk.mjs", server).items():
        assert found["one"] == PNG, provider
        assert found["several"] == {"value": ["png"] * 3}
        assert found["edited"] == SIZE
        assert (found["bad"]["error"], found["bad"]["status"]) == ("AI_APICallError", 400)
        assert 'size is "100x100"; allowed: ' in found["bad"]["message"].replace("\\", "")
        assert found["left"]["error"] == "TimeoutError"


def test_an_old_openai(server: Server) -> None:
    assert json.loads(run_with("openai1", "openai_1.py", server.url)) == {
        "version": "1.109.1",
        "several": [True, True],
        "address": "data:image/png;base64",
        "models": ["flux-schnell", "black-forest-labs/FLUX.1-schnell"],
        "streamed": "image_generation.completed",
        "param": "size",
        "left": "APITimeoutError",
    }
