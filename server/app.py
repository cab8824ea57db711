"""Where everything meets: settings become workers, an engine, and an application with all its routes."""

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from server import __version__
from server.adapter_files import AdapterFiles
from server.adapters import Adapters
from server.addresses import Addresses, networks
from server.decoders import Decoders
from server.engine import Engine
from server.expiry import Expiry
from server.http.access import AccessMiddleware
from server.http.adapters import adapters_router
from server.http.auth import Door
from server.http.automatic1111 import automatic1111_router
from server.http.bfl import DIALECT as BFL
from server.http.bfl import bfl_payload, bfl_router
from server.http.cog import DIALECT as COG
from server.http.cog import cog_payload, cog_router
from server.http.fal import fal_routers
from server.http.fal_queue import DIALECT as FAL
from server.http.fal_queue import fal_payload
from server.http.huggingface import huggingface_router
from server.http.leniency import Leniency
from server.http.native import native_router
from server.http.openai import openai_router
from server.http.ops import ops_router, probes_router
from server.http.outputs import Outputs, files_router
from server.http.own_files import OwnFiles
from server.http.playground import Playground, playground_router
from server.http.replicate import DIALECT as REPLICATE
from server.http.replicate import replicate_payload, replicate_routers
from server.http.sources import Sources
from server.http.unrouted import answer_unrouted, render_error
from server.idempotency import Answers
from server.image_urls import ImageUrls
from server.job_store import JobStore
from server.jobs import Jobs
from server.keys import KeysFile
from server.metrics import Metrics
from server.picture_files import PictureFiles
from server.protocol import Start
from server.quotas import Quotas
from server.settings import DIALECTS, Settings, adapter_files
from server.signatures import Signatures
from server.source_files import SourceFiles
from server.uploads import Uploads
from server.usage import UsageFile
from server.webhooks import Webhooks

PREFLIGHT_S: Final = 3600  # that browsers may remember what is allowed
EXPOSED_HEADERS: Final = (
    "Cache-Status",
    "ETag",
    "Idempotent-Replayed",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Server-Timing",
    "X-Request-Id",
    "X-Seed",
    "X-Steps",
    "X-Should-Retry",
    "X-Fal-Error-Type",
    "X-Fal-Request-Id",
    "X-Fal-Request-Timeout-Type",
)


@dataclass(frozen=True, slots=True)
class Edge:
    """What of the settings concerns HTTP. With `ops_apart` metrics and documentation are on another port."""

    door: Door = field(default_factory=Door)
    usage: UsageFile | None = None
    leniency: Mapping[str, Leniency] = field(default_factory=lambda: leniencies(Settings()))
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = Settings.model_fields["max_body_mb"].default << 20
    ops_apart: bool = False
    playground: bool = True


@dataclass(frozen=True, slots=True)
class Service:
    """`api` starts the engine and leaves stopping it to its caller, who knows why it ends.

    `ops` is for the port of operations, where there is one.
    """

    api: FastAPI
    ops: FastAPI | None
    engine: Engine


def build_service(settings: Settings) -> Service:
    """Make everything that the settings ask for; raises `KeysFileError` and `StorageUnavailable`."""
    metrics = Metrics()
    door = Door(None if settings.api_keys_file is None else KeysFile.read(settings.api_keys_file))
    engine = Engine(
        worker_starts(settings, cores=len(os.sched_getaffinity(0))),
        metrics=metrics,
        adapters=open_adapters(settings),
        max_backlog_s=settings.max_backlog_s,
        default_deadline_s=settings.default_deadline_ms / 1000 or None,
        auto_steps_backlog_s=settings.auto_steps_backlog_s,
        hang_s=settings.hang_s,
        image_cache_bytes=settings.image_cache_mb << 20,
        charge=door.charge,
    )
    answers = Answers(settings.idempotency_mb << 20, metrics=metrics)
    edge = Edge(
        door=door,
        usage=UsageFile(_at_home(settings.data_dir) / "usage.json", door.quotas) if door.keys else None,
        leniency=leniencies(settings),
        cors_origins=settings.cors_origin_list,
        max_body_bytes=settings.max_body_mb << 20,
        ops_apart=settings.ops_port is not None,
        playground=settings.playground,
    )
    jobs, outputs = open_jobs(settings, engine, metrics, door.quotas)
    engine.adapters.files.clear_uploads()  # of the data directory, which is this process's now
    api = assemble(engine, metrics, answers, jobs, outputs, sources_of(settings, outputs), edge)
    return Service(api, assemble_ops(engine, metrics, api) if edge.ops_apart else None, engine)


def open_adapters(settings: Settings) -> Adapters:
    """Return the adapters of the settings and of the data directory."""
    files = AdapterFiles(_at_home(settings.data_dir) / "adapters", adapter_files(settings.lora))
    return Adapters(files, max_upload_bytes=settings.max_lora_mb << 20)


def open_jobs(settings: Settings, engine: Engine, metrics: Metrics, quotas: Quotas) -> tuple[Jobs, Outputs]:
    """Return the jobs of the data directory, which is now this process's, and how their pictures are given.

    Raises `StorageUnavailable`.
    """
    folder = _at_home(settings.data_dir) / "jobs"
    store = JobStore(folder / "jobs.sqlite")
    store.open()
    files = PictureFiles(folder / "files", lifetime_s=settings.jobs_ttl_s)
    limit_bytes = settings.jobs_disk_mb << 20
    outputs = Outputs(files, settings.output, settings.public_url)
    signatures = Signatures.of(store)
    payloads = {
        REPLICATE: replicate_payload(outputs, signatures),
        FAL: fal_payload(outputs),
        BFL: bfl_payload(outputs),
        COG: cog_payload(outputs),
    }
    addresses = Addresses(networks(settings.webhook_allow_networks))
    jobs = Jobs(
        engine,
        store,
        files,
        SourceFiles(folder / "sources", limit_bytes=limit_bytes),
        Webhooks(
            store, payloads, signatures, addresses, metrics=metrics, signers={FAL: signatures.fal_headers}
        ),
        Expiry(
            store,
            files,
            uploads_in(settings),
            lifetime_s=settings.jobs_ttl_s,
            limit_bytes=limit_bytes,
        ),
        metrics=metrics,
        quotas=quotas,
        max_unfinished=settings.max_unfinished_jobs,
    )
    return jobs, outputs


def uploads_in(settings: Settings) -> Uploads:
    """Return what clients uploaded into the data directory."""
    folder = _at_home(settings.data_dir) / "jobs" / "uploads"
    return Uploads(folder, lifetime_s=settings.jobs_ttl_s, limit_bytes=settings.jobs_disk_mb << 20)


def sources_of(settings: Settings, outputs: Outputs) -> Sources:
    """Return how the pictures of requests are found and decoded; a decoder starts with the first."""
    allowed = Addresses(networks(settings.image_url_allow_networks)) if settings.allow_image_urls else None
    limit_bytes = settings.max_body_mb << 20
    decoders = Decoders(max_pixels=settings.max_image_megapixels * 1_000_000, max_body_bytes=limit_bytes)
    urls = ImageUrls(allowed, limit_bytes=limit_bytes)
    return Sources(decoders, urls, OwnFiles(outputs, uploads_in(settings)))


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
    sources: Sources,
    edge: Edge | None = None,
) -> FastAPI:
    """Put the routes of all dialects around an engine."""
    edge = edge or Edge()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        await jobs.start()
        async with edge.usage.kept() if edge.usage else nullcontext():
            yield
            await jobs.stop()
        await sources.decoders.stop()

    app = _bare(lifespan)
    app.state.door = edge.door
    app.add_middleware(
        AccessMiddleware, metrics=metrics, max_body_bytes=edge.max_body_bytes, render=render_error
    )
    if edge.cors_origins:  # around all, so that a browser can read every failure
        app.add_middleware(
            CORSMiddleware,
            allow_origins=edge.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
            max_age=PREFLIGHT_S,
        )
    ops = [] if edge.ops_apart else [ops_router(metrics, app)]
    playground = Playground.read(docs=not edge.ops_apart) if edge.playground else None
    _include(
        app,
        [
            probes_router(engine, metrics),
            *ops,
            *([playground_router(playground)] if playground else []),
            *dialect_routers(engine, answers, jobs, outputs, sources, edge.leniency, playground),
        ],
    )
    return app


def assemble_ops(engine: Engine, metrics: Metrics, api: FastAPI) -> FastAPI:
    """Put what is for those who run the server into an application of its own, which asks for no key."""
    app = _bare()
    app.state.door = Door()
    app.add_middleware(AccessMiddleware, metrics=metrics, max_body_bytes=0, render=render_error)
    _include(app, [probes_router(engine, metrics), ops_router(metrics, api)])
    return app


def _bare(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None) -> FastAPI:
    return FastAPI(
        title="schnell-server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )


def _include(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes]
    app.add_exception_handler(HTTPException, answer_unrouted(routes))


def dialect_routers(
    engine: Engine,
    answers: Answers,
    jobs: Jobs,
    outputs: Outputs,
    sources: Sources,
    leniency: Mapping[str, Leniency],
    playground: Playground | None = None,
) -> Sequence[APIRouter]:
    """Return the routes of all dialects; of two that take a path the first answers."""
    return (
        native_router(engine, answers, sources),
        adapters_router(engine),
        *replicate_routers(
            engine, jobs, outputs, sources, leniency["replicate"]
        ),  # knows OpenAI's owner/name too
        openai_router(engine, answers, sources, leniency["openai"]),
        huggingface_router(engine, sources, leniency["huggingface"]),
        automatic1111_router(engine, sources, leniency["automatic1111"]),
        cog_router(engine, jobs, outputs, sources, leniency["cog"], playground),
        *fal_routers(engine, jobs, outputs, sources, leniency["fal"]),
        bfl_router(engine, jobs, outputs, sources, leniency["bfl"]),
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
            adapters_limit_bytes=settings.lora_memory_mb << 20,
        )
        for device in devices
    ]


def _at_home(path: Path) -> Path:
    """Return `path` with `~` replaced; a user without a home has only what is temporary."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        return Path(tempfile.gettempdir(), *path.parts[1:])
