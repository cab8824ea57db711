"""Run by `test_other_clients` with openai 1.109.1: prints what an old installation meets."""

import base64
import json
import sys

import openai


def main(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0)
    sent = {"model": "dall-e-3", "prompt": "a cat", "extra_body": {"steps": 1}}
    several = client.images.generate(**sent, n=2, size="256x256", response_format="b64_json")  # type: ignore[call-overload]
    address = client.images.generate(**sent, response_format="url")  # type: ignore[call-overload]
    stream = client.images.generate(**sent, size="256x256", stream=True, partial_images=1)  # type: ignore[call-overload]
    try:
        client.images.generate(prompt="a cat", size="100x100")  # type: ignore[arg-type]
    except openai.BadRequestError as error:
        param = error.param
    try:
        client.images.generate(prompt="a", size="1536x1536", timeout=0.2)  # type: ignore[arg-type]
    except openai.APITimeoutError as error:
        left = type(error).__name__
    json.dump(
        {
            "version": openai.__version__,
            "several": [base64.b64decode(each.b64_json).startswith(b"\x89PNG") for each in several.data],
            "address": address.data[0].url.partition(",")[0],
            "models": [model.id for model in client.models.list()][:2],
            "streamed": [event.type for event in stream][-1],
            "param": param,
            "left": left,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(sys.argv[1])
