"""What no route takes, and faults of ours, in the shape that errors have below the path that was asked for.

Each dialect renders what goes wrong on its own routes; where there is no route, the path tells whose client
asks. Paths that are nobody's have the server's own shape, which is OpenAI's too.
"""

from collections.abc import Callable, Sequence
from typing import Final

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from server.errors import InvalidRequest, MethodNotAllowed, NotFound, ServerError
from server.http import automatic1111, bfl, cog, fal_app, huggingface, openai, own_files, replicate
from server.http.errors import Render
from server.http.errors import render_error as render_plainly

# The longest prefix counts. OpenAI and Replicate share /v1.
PREFIXES: Final[dict[str, Render]] = {
    "/v1/images": openai.render_error,
    "/v1/models": openai.render_error,
    **{
        f"{prefix}/{name}": replicate.render_error
        for prefix in own_files.PREFIXES
        for name in ("predictions", "files", "stream", "webhooks")
    },
    "/replicate": replicate.render_error,
    "/v1/v1": replicate.render_error,
    "/predictions": cog.render_error,
    "/hf": huggingface.render_error,
    "/sdapi": automatic1111.render_error,
    "/fal": fal_app.render_error,
    "/api/fal": fal_app.render_error,
    "/bfl": bfl.render_error,
}


def render_error(request: Request, error: ServerError) -> Response:
    """Answer an error in the shape of the dialect below whose prefix the path of `request` is."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    found = [prefix for prefix in PREFIXES if path == prefix or path.startswith(f"{prefix}/")]
    render = PREFIXES[max(found, key=len)] if found else render_plainly
    return render(request, error)


def answer_unrouted(routes: Sequence[BaseRoute]) -> Callable[[Request, Exception], Response]:
    """Return the handler of what none of `routes` takes."""

    def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for this kind only"
        if error.status_code == 405:
            allowed = ", ".join(sorted(_methods_at(request, routes)))
            message = f"{request.method} is not allowed here; allowed: {allowed}"
            response = render_error(request, MethodNotAllowed(message))
            response.headers["Allow"] = allowed
            return response
        if error.status_code == 404:
            return render_error(request, NotFound("there is nothing at this path; /docs lists what there is"))
        return render_error(request, InvalidRequest(str(error.detail)))

    return answer


def _methods_at(request: Request, routes: Sequence[BaseRoute]) -> set[str]:
    """Return the methods of every route at the path of `request`; one route does not know the others."""
    here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in here if isinstance(route, Route) for method in route.methods or ()}
