"""fal's clients and the Vercel AI SDK, unchanged: Python over TLS, JavaScript through the proxy."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import replicate

from tests.e2e.conftest import CALLABLE, ROOT, Server, run_node, running_server
from tests.e2e.receiver import receiving

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
AUTHORITY = (
    f"openssl req -x509 {KEY} -subj /CN=authority -addext keyUsage=critical,keyCertSign "
    "-keyout authority.key -out authority.pem"
)
CERTIFICATE = (
    f"openssl req -x509 {KEY} -CA authority.pem -CAkey authority.key -subj /CN=server "
    "-addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE "
    "-keyout key.pem -out certificate.pem"
)
JPEG, PNG = "ffd8ff", "89504e"
PICTURE = [5, 256, 272, [JPEG]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What came of the calls of fal-client, and the body of the webhook that it asked for."""
    folder = tmp_path_factory.mktemp("fal")
    for command in (AUTHORITY, CERTIFICATE):
        subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)
    arguments = ["--tls-cert", str(folder / "certificate.pem"), "--tls-key", str(folder / "key.pem")]
    arguments += ["--webhook-allow-networks", CALLABLE, "--max-unfinished-jobs", "2"]
    with running_server(folder, *arguments, ready=False) as server, receiving() as receiver:
        host = server.url.removeprefix("https://")
        environment = {
            "FAL_RUN_HOST": f"{host}/fal/run",
            "FAL_QUEUE_RUN_HOST": f"{host}/fal/queue",
            "FAL_KEY": "unused",
            "SSL_CERT_FILE": str(folder / "authority.pem"),
        }
        ended = subprocess.run(
            [sys.executable, "-m", "tests.e2e.fal_calls", receiver.url],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr + server.log
        ((headers, body),) = receiver.wait(1)
        yield json.loads(ended.stdout) | {
            "called": json.loads(body),
            "call headers": headers,
            "call body": body.decode(),
            "url": server.url,
            "authority": environment["SSL_CERT_FILE"],
        }


def test_a_run_gives_pictures_by_url_over_tls(told: dict[str, Any]) -> None:
    assert told["run"] == [5, 256, 272, [PNG, PNG]]
    assert told["async"] == PICTURE
    *previews, last = told["stream"]
    assert last == PICTURE
    assert all(each[1:3] == [128, 136] for each in previews)


def test_sync_mode_gives_them_as_data(told: dict[str, Any]) -> None:
    assert told["sync_mode"] == [5, 256, 272, ["data:image/jpeg;base64,"]]


def test_a_request_that_comes_while_the_model_is_loaded_waits_for_it(told: dict[str, Any]) -> None:
    assert told["early"] == PICTURE


def test_the_queue_is_asked_by_handle_and_by_id(told: dict[str, Any]) -> None:
    queued = told["queued"]
    assert (queued["last"], queued["updates"], queued["logs"]) == (
        "Completed",
        "Completed",
        ["Using seed: 5"],
    )
    assert queued["result"] == queued["subscribed"] == PICTURE
    assert queued["seconds"] > 0
    assert queued["cancelled late"][0] == 400


def test_a_picture_is_where_a_request_starts(told: dict[str, Any]) -> None:
    assert told["edited"] == told["edited in the queue"] == PICTURE


def test_a_request_that_is_cancelled_comes_to_an_end(told: dict[str, Any]) -> None:
    assert told["cancelled"]["result"][:2] == [499, "client_cancelled"]
    assert told["cancelled"]["status"] == "client_cancelled"


def test_bad_input_is_named_at_once(told: dict[str, Any]) -> None:
    assert told["bad"][0] == 422
    assert "num_images is 9; allowed: a whole number from 1 to 4" in told["bad"][2]
    assert "prompt is missing" in told["bad in the queue"][2]
    assert told["unknown"][0] == 404


def test_the_client_waits_until_a_full_queue_has_room(told: dict[str, Any]) -> None:
    assert told["overloaded"] is True


def test_a_webhook_is_called_with_the_output(told: dict[str, Any]) -> None:
    called = told["called"]
    assert called["request_id"] == called["gateway_request_id"] == told["webhook"]
    assert called["status"] == "OK"
    assert called["payload"]["images"][0]["url"].startswith(f"{told['url']}/files/")
    assert told["call headers"]["webhook-id"].startswith("msg_")


def test_replicate_s_clients_read_pictures_by_url_and_verify_calls(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same server, since this is the one with TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", told["authority"])
    client = replicate.Client(api_token="r8_unused", base_url=told["url"])
    sent = {"prompt": "a red circle", "megapixels": "0.25", "num_inference_steps": 1}
    (output,) = client.run("black-forest-labs/flux-schnell", input=sent)
    assert output.url.startswith(f"{told['url']}/files/")
    assert output.read()[8:12] == b"WEBP"
    client._client.close()
    call = json.dumps({"headers": told["call headers"], "body": told["call body"]})
    printed = run_node("replicate-tls.mjs", told["url"], call, NODE_EXTRA_CA_CERTS=told["authority"])
    assert printed == "ok\n"


def test_the_javascript_client_through_the_proxy(server: Server) -> None:
    with receiving() as receiver:
        found = json.loads(run_node("fal.mjs", server.url, receiver.url))
        ((_, body),) = receiver.wait(1)
    assert found["run"] == {"value": ["jpeg"]}
    assert found["direct"] == {"value": [["jpeg"]] * 2}
    assert found["several"] == {"value": ["jpeg"] * 4}
    assert (
        found["polled"]
        == found["streamedStates"]
        == {"value": {"kinds": ["jpeg"] * 2, "named": True, "last": "COMPLETED", "logs": 1}}
    )
    assert found["cancelled"] == {
        "value": {"status": "COMPLETED", "error_type": "client_cancelled", "error": "ApiError", "code": 499}
    }
    assert found["bad"] == {"name": "ValidationError", "status": 422, "fields": [["body", "num_images"]]}
    *previews, last = found["streamed"]["value"]["widths"]
    assert (set(previews), last) == ({128}, 256)
    assert found["streamed"]["value"]["done"] == ["jpeg"]
    assert (json.loads(body)["request_id"], json.loads(body)["status"]) == (found["webhook"], "OK")


def test_the_vercel_ai_sdk_with_fal_and_black_forest_labs(server: Server) -> None:
    for provider, found in json.loads(run_node("aisdk-fal-bfl.mjs", server.url)).items():
        assert found["one"] == {"value": ["jpeg"]}, provider
        assert found["several"] == {"value": ["jpeg"] * 3}, provider
        assert found["edited"] == {"value": ["jpeg"]}, provider
        assert (found["bad"]["error"], found["bad"]["status"]) == ("AI_APICallError", 422), provider
        assert "seed is -1; allowed: " in found["bad"]["message"], provider
