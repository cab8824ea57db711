"""The served model as clients ask for it by name: OpenAI's and Replicate's, in one object.

Both ask at `/v1/models/{owner}/{name}`, OpenAI's clients when an id has a slash. What the two want to find
there does not collide.
"""

from typing import Any, Final

from server.engine import Engine
from server.errors import NotReady
from server.generation import ModelInfo
from server.http.leniency import MODEL_IDS
from server.http.predictions import OUTPUT_SCHEMA, Input

CREATED: Final = 1722470400  # when FLUX.1 [schnell] was published
CREATED_AT: Final = "2024-08-01T00:00:00.000000Z"
COG_VERSION: Final = "0.23.1"  # whose schema this is
LICENCE: Final = "https://huggingface.co/black-forest-labs/FLUX.1-schnell/blob/main/LICENSE.md"


def model_if_loaded(engine: Engine) -> ModelInfo | None:
    """Return what is served; None while it is being loaded, when jobs are taken in all the same."""
    try:
        return engine.model
    except NotReady:
        return None


def openai_model(name: str) -> dict[str, Any]:
    """Return a model as OpenAI's clients know it."""
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "black-forest-labs"}


def openai_adapter(name: str) -> dict[str, Any]:
    """Return an adapter as a model of its own, with the one that it changes as its parent, as vLLM does."""
    return openai_model(name) | {"owned_by": "schnell-server", "root": name, "parent": MODEL_IDS[0]}


def model_object(owner: str, name: str, model: ModelInfo, *, base_url: str) -> dict[str, Any]:
    """Return a model as clients of both know it."""
    return openai_model(f"{owner}/{name}") | {
        "url": f"{base_url}/docs",
        "owner": owner,
        "name": name,
        "description": f"{model.name}, served by schnell-server",
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": LICENCE,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "created_at": CREATED_AT,
        "latest_version": version_object(version_of(model)),
    }


def version_of(model: ModelInfo) -> str:
    """Return the id of the one version that there is: the digest of its weights."""
    return model.digest[:64]


def version_object(version_id: str) -> dict[str, Any]:
    """Return a version with the schema of what it takes and gives."""
    return {
        "id": version_id,
        "created_at": CREATED_AT,
        "cog_version": COG_VERSION,
        "openapi_schema": {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0.1.0"},
            "paths": {},
            "components": {"schemas": {"Input": Input.model_json_schema(), "Output": OUTPUT_SCHEMA}},
        },
    }
