"""What dialects forgive: by setting, by dialect, and never silently."""

import httpx
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from server.app import leniencies
from server.errors import InvalidRequest
from server.http.leniency import Leniency
from server.settings import Settings
from tests.server.http.fake_engine import FakeEngine, serving, wait_until
from tests.server.models import MODEL


def test_steps_beyond_the_model_are_clamped_where_clients_are_known_to_send_them() -> None:
    clamped = {name for name, leniency in leniencies(Settings()).items() if leniency.clamp_steps}
    assert clamped == {"openai", "huggingface", "automatic1111", "replicate", "fal", "bfl"}
    assert Leniency(clamp_steps=True).steps(50, MODEL, field="steps") == MODEL.max_steps
    assert Leniency(clamp_steps=True).steps(None, MODEL, field="steps") == MODEL.default_steps
    with pytest.raises(InvalidRequest, match="steps is 13; allowed: a whole number from 1 to 12"):
        Leniency(clamp_steps=False).steps(13, MODEL, field="steps")


@pytest.mark.parametrize("value", ["native", "openai,", "", "none,openai"])
def test_only_dialects_can_be_named(value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(clamp_steps=value)


def test_settings_reach_their_dialects() -> None:
    chosen = leniencies(Settings(clamp_steps="cog,openai", strict_models=True))
    assert {name for name, leniency in chosen.items() if leniency.clamp_steps} == {"cog", "openai"}
    assert all(leniency.strict_models for leniency in chosen.values())


def test_the_name_of_another_model_is_noted_in_the_log(client: httpx.Client) -> None:
    with capture_logs() as logs:
        answer = client.post("/v1/images/generations", json={"prompt": "a", "model": "gpt-image-1\n"})
        known = client.post("/v1/images/generations", json={"prompt": "a", "model": "flux-schnell"})
        wait_until(lambda: len(logs) == 2)
    assert (answer.status_code, known.status_code) == (200, 200)
    assert [line.get("asked_model") for line in logs] == ["gpt-image-1\\n", None]


def test_openai_s_clients_are_told_that_there_is_no_such_model() -> None:
    with serving(FakeEngine(), strict_models=True) as url:
        answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a", "model": "dall-e-3"})
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert error["message"] == (
            'model is "dall-e-3"; allowed: flux-schnell, black-forest-labs/FLUX.1-schnell, fake'
        )
        assert httpx.post(f"{url}/v1/images/generations", json={"prompt": "a"}).status_code == 200
