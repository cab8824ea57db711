"""Every setting of the server with its one default: `FLUX_<NAME>` in the environment, `--<name>` as a flag.

Read once by `server.__main__`, frozen, and handed down. Unknown flags and unknown `FLUX_` variables are
errors, so that a misspelt setting never does nothing.
"""

import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.generation import ADAPTER_NAME, ADAPTER_NAME_RULE, ADAPTER_SUFFIX, MAX_DEADLINE_MS

ENV_PREFIX = "FLUX_"
DIALECTS = ("openai", "huggingface", "automatic1111", "cog", "replicate", "fal", "bfl")
EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "model" / "tiny"


def _backlogs_s(value: object) -> object:
    """Read three backlogs as they are written in a flag and in the environment: `2,4,6`."""
    if not isinstance(value, str):
        return value
    try:
        backlogs_s = [float(part) for part in value.split(",")]
    except ValueError:
        backlogs_s = []
    if len(backlogs_s) != 3 or not 0 <= backlogs_s[0] <= backlogs_s[1] <= backlogs_s[2]:
        raise ValueError("allowed are three numbers from 0 on, none below the one before it, such as 2,4,6")
    return tuple(backlogs_s)


def adapter_files(entries: Sequence[str]) -> dict[str, Path]:
    """Return the adapters of `--lora` by name: files by the names they are given, or by their own.

    Raises `ValueError` for what is not there, is no name, or has a name that another has.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        name, given, text = entry.rpartition("=")
        path = Path(text).absolute()
        if given:
            named = {name: path}
        elif path.is_dir():
            named = {each.name.removesuffix(ADAPTER_SUFFIX): each for each in path.glob(f"*{ADAPTER_SUFFIX}")}
        else:
            named = {path.name.removesuffix(ADAPTER_SUFFIX): path}
        for each, file in sorted(named.items()):
            if not file.is_file():
                raise ValueError(f"no file at {file}")
            if not ADAPTER_NAME.fullmatch(each):
                raise ValueError(f"{each!a} is no name; allowed: {ADAPTER_NAME_RULE}")
            if each in found:
                raise ValueError(f"{found[each]} and {file} have the same name")
            found[each] = file
    return found


class Settings(BaseSettings):
    """Serve FLUX.1 [schnell] over HTTP."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m server",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    model: Annotated[
        Path, Field(description="checkpoint folder or file; by default the small embedded model")
    ] = EMBEDDED_MODEL
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(description="port to listen on; 0 picks a free one", ge=0, le=65535)] = 8000
    api_keys_file: Annotated[
        Path | None,
        Field(description="who may come in: made by python -m server.keys, read again when it changes"),
    ] = None
    insecure_no_auth: Annotated[
        bool, Field(description="let anybody in on an address that is not loopback")
    ] = False
    ops_host: Annotated[str, Field(description="address of --ops-port, which asks for no key")] = "127.0.0.1"
    ops_port: Annotated[
        int | None,
        Field(
            description="port for /metrics, /docs and probes, in plain HTTP; of these --port keeps probes",
            ge=0,
            le=65535,
        ),
    ] = None
    cors_origins: Annotated[
        str,
        Field(
            description="pages that may call from a browser: * or a list such as https://a.org,http://b:3000",
            pattern=r"^(|\*|https?://[^\s,/*]+(,https?://[^\s,/*]+)*)$",
        ),
    ] = ""
    playground: Annotated[bool, Field(description="the page at / where people make pictures")] = True
    forwarded_allow_ips: Annotated[
        str,
        Field(
            description="proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: * or a list of "
            "addresses and networks"
        ),
    ] = ""
    root_path: Annotated[
        str,
        Field(description="path that a proxy takes off in front, such as /flux", pattern=r"^(/[\w.~-]+)*$"),
    ] = ""
    keep_alive_s: Annotated[
        int, Field(description="seconds that an idle connection is kept; longer than a proxy keeps it", gt=0)
    ] = 75
    max_body_mb: Annotated[
        int, Field(description="bound of a request's body, MiB; more is answered with 413", ge=1, le=1024)
    ] = 32
    max_image_megapixels: Annotated[
        int, Field(description="bound of a picture that comes in, before it is unpacked", ge=1, le=200)
    ] = 25
    allow_image_urls: Annotated[
        bool, Field(description="fetch pictures that clients name by URL, under the rules of webhooks")
    ] = False
    image_url_allow_networks: Annotated[
        str, Field(description="networks inside from which pictures may be fetched all the same")
    ] = ""
    device: Annotated[
        str,
        Field(
            description="auto, cpu, cuda, or a comma-separated list such as cuda:0,cuda:1 (one worker each)",
            pattern=r"^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$",
        ),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Field(description="auto is float32 on a CPU and bfloat16 on a GPU"),
    ] = "auto"
    numerics: Annotated[
        Literal["auto", "exact", "fast"],
        Field(description="exact: neighbours change not one byte of a picture; auto is exact on a CPU"),
    ] = "auto"
    kernels: Annotated[
        Literal["auto", "triton", "reference"],
        Field(
            description="auto: Triton on a GPU, beside the vendor's where that is faster; else plain PyTorch"
        ),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "fp8"],
        Field(
            description="fp8: weights and inputs of the transformer's linears in e4m3, a scale for each row; "
            "on GPUs without units for it the weights alone"
        ),
    ] = "none"
    memory: Annotated[
        Literal["full", "balanced", "low"],
        Field(
            description="text encoders: full: on the device; balanced: only while they encode; low: layer by "
            "layer; no difference on a CPU"
        ),
    ] = "full"
    lora: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(lambda value: tuple(value.split(",")) if isinstance(value, str) else value),
        Field(
            description="adapters: name=file, a file, or a folder of files, which go by their own names; "
            "several with commas between, or by the flag again"
        ),
    ] = ()
    lora_memory_mb: Annotated[
        int, Field(description="bound of all adapters on each device, MiB; more are refused", ge=0)
    ] = 2048
    max_lora_mb: Annotated[
        int, Field(description="bound of a file that PUT /v1/loras/{name} takes, MiB; 0 takes none", ge=0)
    ] = 1024
    threads: Annotated[
        int, Field(description="CPU threads of all workers together; 0 takes every core", ge=0, le=1024)
    ] = 0
    max_steps: Annotated[
        int,
        Field(description="largest num_inference_steps; 0: 12 for schnell, 50 for dev weights", ge=0, le=200),
    ] = 0
    data_dir: Annotated[
        Path,
        Field(
            description="folder of one server for what it keeps between starts: jobs and their pictures, "
            "what steps cost, what keys used"
        ),
    ] = Path("~/.cache/schnell-server")
    calibration_s: Annotated[
        float,
        Field(
            description="seconds that a first start may measure what steps cost; 0: hardly, and not kept",
            ge=0,
            le=600,
        ),
    ] = 10.0
    max_backlog_s: Annotated[
        float,
        Field(description="device-seconds of admitted work per worker above which 429 is answered", gt=0),
    ] = 30.0
    default_deadline_ms: Annotated[
        int,
        Field(description="deadline of requests that name none; 0: none", ge=0, le=MAX_DEADLINE_MS),
    ] = 0
    auto_steps_backlog_s: Annotated[
        tuple[float, float, float],
        NoDecode,
        BeforeValidator(_backlogs_s),
        Field(
            description='three backlogs, in device-seconds per worker, from which num_inference_steps "auto" '
            "is 3, 2 and 1 instead of 4"
        ),
    ] = (2.0, 4.0, 6.0)
    clamp_steps: Annotated[
        str,
        Field(
            description="dialects in which steps beyond the model's are clamped and not refused, with commas "
            "between: openai, huggingface, automatic1111, cog, replicate, fal, bfl; or none",
            pattern=rf"^(none|({'|'.join(DIALECTS)})(,({'|'.join(DIALECTS)}))*)$",
        ),
    ] = "openai,huggingface,automatic1111,replicate,fal,bfl"
    strict_models: Annotated[
        bool,
        Field(description="refuse names of models that are not served, instead of noting them in the log"),
    ] = False
    drain_s: Annotated[float, Field(description="seconds that SIGTERM leaves to admitted work", ge=0)] = 30.0
    hang_s: Annotated[
        float,
        Field(description="seconds of one step, or of silence, after which a busy worker is replaced", gt=0),
    ] = 300.0
    conditioning_cache_mb: Annotated[
        int, Field(description="bound of the prompt conditioning cache per worker, MiB; 0 turns it off", ge=0)
    ] = 256
    image_cache_mb: Annotated[
        int, Field(description="bound of the finished pictures that are kept, MiB; 0 keeps none", ge=0)
    ] = 64
    idempotency_mb: Annotated[
        int,
        Field(description="bound of the answers that are kept for Idempotency-Key, MiB; 0 keeps none", ge=0),
    ] = 64
    jobs_ttl_s: Annotated[
        float,
        Field(description="seconds that a finished job and its pictures are kept", ge=10, le=2_592_000),
    ] = 86_400.0
    jobs_disk_mb: Annotated[
        int, Field(description="bound of finished jobs on the disk, MiB; the oldest go first", ge=1)
    ] = 4096
    max_unfinished_jobs: Annotated[
        int, Field(description="jobs that may wait or run at once; beyond that 429 is answered", ge=1)
    ] = 1000
    output: Annotated[
        Literal["auto", "data", "url"],
        Field(
            description="pictures of jobs as data: addresses or by URL; auto: by URL where the client came "
            "over https, since its libraries take no other"
        ),
    ] = "auto"
    public_url: Annotated[
        str,
        Field(
            description="how clients reach the server, for URLs in answers; by default as the request did",
            pattern=r"^(https?://[^/\s?#@]+[^\s?#]*)?$",
        ),
    ] = ""
    webhook_allow_networks: Annotated[
        str,
        Field(description="networks inside that webhooks may call all the same, such as 10.0.0.0/8,fd00::/8"),
    ] = ""
    verify_weights: Annotated[
        Literal["auto", "always", "never"],
        Field(
            description="check the model folder against its SHA256SUMS before loading; auto: if it has them"
        ),
    ] = "auto"
    allow_pickle: Annotated[
        bool, Field(description="load pickle checkpoints (weights_only) instead of refusing them")
    ] = False
    tls_cert: Annotated[Path | None, Field(description="PEM certificate chain; turns TLS on")] = None
    tls_key: Annotated[Path | None, Field(description="PEM private key of --tls-cert")] = None
    log_format: Annotated[Literal["text", "json"], Field(description="one line per event")] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="least severe level that is logged; prompts never are"),
    ] = "info"

    @field_validator("webhook_allow_networks", "image_url_allow_networks")
    @classmethod
    def _networks_parse(cls, text: str) -> str:
        for each in filter(None, (each.strip() for each in text.split(","))):
            ipaddress.ip_network(each)  # raises ValueError with what is wrong
        return text

    @field_validator("lora")
    @classmethod
    def _adapters_are_there(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        adapter_files(entries)
        return entries

    @property
    def cors_origin_list(self) -> tuple[str, ...]:
        return tuple(self.cors_origins.split(",")) if self.cors_origins else ()

    @field_validator("api_keys_file", "tls_cert", "tls_key")
    @classmethod
    def _file_exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"no file at {path}")
        return path

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _are_networks(cls, proxies: str) -> str:
        for proxy in proxies.split(",") if proxies not in ("", "*") else ():
            ipaddress.ip_network(proxy)  # raises ValueError with what is wrong
        return proxies

    @model_validator(mode="after")
    def _is_not_open_by_accident(self) -> "Settings":
        if self.api_keys_file is not None and self.insecure_no_auth:
            raise ValueError("--api-keys-file and --insecure-no-auth exclude each other")
        if self.api_keys_file is None and not self.insecure_no_auth and not _is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} can be reached from elsewhere, and anybody could make pictures there; "
                "allowed: --api-keys-file FILE (python -m server.keys create NAME makes it), or "
                "--insecure-no-auth where something else checks who calls"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Settings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key are given together or not at all")
        return self


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; of names only the one that always means it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unknown_variables(environment: "os._Environ[str] | dict[str, str]") -> list[str]:
    """Names that carry the prefix but are no setting: most likely misspelt."""
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.startswith(ENV_PREFIX) and name.upper() not in known)


def markdown_table() -> str:
    """Return the settings as the README shows them: `python -m server.settings` prints it."""
    lines = ["| flag | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "embedded" if field.default == EMBEDDED_MODEL else str(field.default).lower()
        if isinstance(field.default, tuple):
            default = ",".join(f"{each:g}" for each in field.default)
        shown = "" if field.default is None else f"`{default}`"
        choices = get_args(field.annotation)
        words = [f"`{word}`" for word in choices if isinstance(word, str)]
        meaning = (field.description or "") + (f" ({', '.join(words)})" if words else "")
        lines.append(f"| `--{name.replace('_', '-')}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown_table())
