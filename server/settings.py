"""Every setting of the server with its one default: `FLUX_<NAME>` in the environment, `--<name>` as a flag.

Read once by `server.__main__`, frozen, and handed down. Unknown flags and unknown `FLUX_` variables are
errors, so that a misspelt setting never does nothing.
"""

import os
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "FLUX_"
DIALECTS = ("openai", "huggingface", "automatic1111", "cog", "replicate")
EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "model" / "tiny"


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
            description="folder of one server for what it keeps between starts: jobs, their pictures, "
            "what steps cost on a device"
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
    auto_steps_backlog_s: Annotated[
        float,
        Field(description='backlog at which num_inference_steps "auto" goes down by one step each', gt=0),
    ] = 2.0
    clamp_steps: Annotated[
        str,
        Field(
            description="dialects in which steps beyond the model's are clamped and not refused, with commas "
            "between: openai, huggingface, automatic1111, cog, replicate; or none",
            pattern=rf"^(none|({'|'.join(DIALECTS)})(,({'|'.join(DIALECTS)}))*)$",
        ),
    ] = "openai,huggingface,automatic1111,replicate"
    strict_models: Annotated[
        bool,
        Field(description="refuse names of models that are not served, instead of noting them in the log"),
    ] = False
    drain_s: Annotated[float, Field(description="seconds that SIGTERM leaves to admitted work", ge=0)] = 30.0
    hang_s: Annotated[
        float, Field(description="seconds without a sign of life after which a busy worker is replaced", gt=0)
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

    @field_validator("webhook_allow_networks")
    @classmethod
    def _networks_parse(cls, text: str) -> str:
        for each in filter(None, (each.strip() for each in text.split(","))):
            ip_network(each)
        return text

    @field_validator("tls_cert", "tls_key")
    @classmethod
    def _file_exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"no file at {path}")
        return path

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Settings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key are given together or not at all")
        return self


def unknown_variables(environment: "os._Environ[str] | dict[str, str]") -> list[str]:
    """Names that carry the prefix but are no setting: most likely misspelt."""
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.startswith(ENV_PREFIX) and name.upper() not in known)


def markdown_table() -> str:
    """Return the settings as the README shows them: `python -m server.settings` prints it."""
    lines = ["| flag | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "embedded" if field.default == EMBEDDED_MODEL else str(field.default).lower()
        shown = "" if field.default is None else f"`{default}`"
        choices = get_args(field.annotation)
        words = [f"`{word}`" for word in choices if isinstance(word, str)]
        meaning = (field.description or "") + (f" ({', '.join(words)})" if words else "")
        lines.append(f"| `--{name.replace('_', '-')}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown_table())
