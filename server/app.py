"""Where everything meets: settings become workers, an engine, and an application with all its routes."""

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from server import __version__
from server.addresses import Addresses, networks
from server.engine import Engine
from server.errors import InvalidRequest, MethodNotAllowed, NotFound
from server.http.access import AccessMiddleware
from server.http.automatic1111 import automatic1111_router
from server.http.cog import cog_router
from server.http.errors import render_error
from server.http.huggingface import huggingface_router
from server.http.leniency import Leniency
from server.http.native import native_router
from server.http.openai import openai_router
from server.http.ops import ops_router
from server.http.outputs import Outputs, files_router
from server.http.replicate import DIALECT, replicate_payload, replicate_routers
from server.idempotency import Answers
from server.job_store import JobStore
from server.jobs import Jobs
from server.metrics import Metrics
from server.picture_files import PictureFiles
from server.protocol import Start
from server.settings import DIALECTS, Settings
from server.webhooks import Webhooks


def build_app(settings: Settings) -> tuple[FastAPI, Engine]:
    """Return the application and the engine behind it.

    The application starts the engine and leaves stopping it to its caller, who knows why it ends. Raises
    `StorageUnavailable` where jobs cannot be kept, as when another server has the data directory.
    """
    metrics = Metrics()
    engine = Engine(
        worker_starts(settings, cores=len(os.sched_getaffinity(0))),
        metrics=metrics,
        max_backlog_s=settings.max_backlog_s,
        auto_steps_backlog_s=settings.auto_steps_backlog_s,
        hang_s=settings.hang_s,
        image_cache_bytes=settings.image_cache_mb << 20,
    )
    answers = Answers(settings.idempotency_mb << 20, metrics=metrics)
    jobs, outputs = open_jobs(settings, engine, metrics)
    return assemble(engine, metrics, answers, jobs, outputs, leniencies(settings)), engine


def open_jobs(settings: Settings, engine: Engine, metrics: Metrics) -> tuple[Jobs, Outputs]:
    """Return the jobs of the data directory, which is now this process's, and how their pictures are given.

    Raises `StorageUnavailable`.
    """
    folder = _at_home(settings.data_dir) / "jobs"
    store = JobStore(folder / "jobs.sqlite")
    store.open()
    files = PictureFiles(folder / "files", lifetime_s=settings.jobs_ttl_s)
    outputs = Outputs(files, settings.output, settings.public_url)
    payloads = {DIALECT: replicate_payload(outputs)}
    addresses = Addresses(networks(settings.webhook_allow_networks))
    jobs = Jobs(
        engine,
        store,
        files,
        Webhooks(store, payloads, addresses, metrics=metrics),
        metrics=metrics,
        lifetime_s=settings.jobs_ttl_s,
        limit_bytes=settings.jobs_disk_mb << 20,
        max_unfinished=settings.max_unfinished_jobs,
    )
    return jobs, outputs


def leniencies(settings: Settings) -> dict[str, Leniency]:
    """Return what each dialect forgives."""
    clamped = settings.clamp_steps.split(",")
    return {name: Leniency(name in clamped, settings.strict_models) for name in DIALECTS}


def assemble(
    engine: Engine,
    metrics: Metrics,
    answers: Answers,
    jobs: Jobs,
    outputs: Outputs,
    leniency: Mapping[str, Leniency],
) -> FastAPI:
    """Put the routes of all dialects around an engine."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        await jobs.start()
        yield
        await jobs.stop()

    app = FastAPI(
        title="schnell-server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(AccessMiddleware, metrics=metrics)
    everything = routers(engine, metrics, answers, jobs, outputs, leniency)
    for router in everything:
        app.include_router(router)
    routes = [route for router in everything for route in router.routes]
    app.add_exception_handler(HTTPException, _answer_unrouted(routes))
    return app


def routers(
    engine: Engine,
    metrics: Metrics,
    answers: Answers,
    jobs: Jobs,
    outputs: Outputs,
    leniency: Mapping[str, Leniency],
) -> Sequence[APIRouter]:
    """Return the routes of all dialects; of two that take a path the first answers."""
    return (
        ops_router(engine, metrics),
        native_router(engine, answers),
        *replicate_routers(engine, jobs, outputs, leniency["replicate"]),  # knows OpenAI's owner/name too
        openai_router(engine, answers, leniency["openai"]),
        huggingface_router(engine, leniency["huggingface"]),
        automatic1111_router(engine, leniency["automatic1111"]),
        cog_router(engine, leniency["cog"]),
        files_router(outputs.files),
    )


def worker_starts(settings: Settings, *, cores: int) -> list[Start]:
    """Return the first message of every worker; CPU workers share the threads."""
    devices = settings.device.split(",")
    threads = max(1, (settings.threads or cores) // len(devices))
    return [
        Start(
            model=str(settings.model.absolute()),  # not resolved: a link has its siblings beside it
            device=device,
            dtype=settings.dtype,
            numerics=settings.numerics,
            kernels=settings.kernels,
            quantize=settings.quantize,
            memory=settings.memory,
            threads=threads,
            max_steps=settings.max_steps,
            data_dir=str(_at_home(settings.data_dir)),
            calibration_s=settings.calibration_s,
            conditioning_cache_bytes=settings.conditioning_cache_mb << 20,
            verify_weights=settings.verify_weights,
            allow_pickle=settings.allow_pickle,
            log_format=settings.log_format,
            log_level=settings.log_level,
        )
        for device in devices
    ]


def _at_home(path: Path) -> Path:
    """Return `path` with `~` replaced; a user without a home has only what is temporary."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        return Path(tempfile.gettempdir(), *path.parts[1:])


def _answer_unrouted(routes: Sequence[BaseRoute]) -> Callable[[Request, Exception], Response]:
    """Return the handler of what no route takes; it answers in the shape of every other error."""

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
