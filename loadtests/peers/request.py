"""The request and the answer that every peer shares: `POST /v1/generate`, JSON in, PNG out."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL.Image import Image
from pydantic import BaseModel


class Request(BaseModel):
    """What `loadtests.generator` sends."""

    prompt: str
    width: int = 256
    height: int = 256
    seed: int = 0
    num_inference_steps: int = 4
    max_sequence_length: int = 128


def load(model: Path) -> FluxPipeline:
    """Load a checkpoint as its users do: diffusers, the best device, bfloat16 on a GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pipeline = FluxPipeline.from_pretrained(model, dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: FluxPipeline, requests: Sequence[Request]) -> list[bytes]:
    """Make the pictures of requests that differ in nothing but prompt and seed, in one batch."""
    first = requests[0]
    images: list[Image] = pipeline(
        [request.prompt for request in requests],
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=0.0,
        max_sequence_length=first.max_sequence_length,
        generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
    ).images
    return [png(image) for image in images]


def generate_by_size(pipeline: FluxPipeline, requests: Sequence[Request]) -> list[bytes]:
    """Make any requests, those of a kind in one batch: what a batching framework hands over is mixed."""
    kinds: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        kind = (request.width, request.height, request.num_inference_steps, request.max_sequence_length)
        kinds.setdefault(kind, []).append(index)
    answers: dict[int, bytes] = {}
    for indices in kinds.values():
        pictures = generate(pipeline, [requests[index] for index in indices])
        answers |= dict(zip(indices, pictures, strict=True))
    return [answers[index] for index in range(len(requests))]


def png(image: Image) -> bytes:
    """Encode a picture as Pillow does it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
