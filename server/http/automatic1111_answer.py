"""What AUTOMATIC1111's web API says of pictures, of work that runs, and of the one model there is."""

from collections.abc import Sequence
from typing import Any, Final

from server.engine import Engine
from server.generation import GenerationRequest, ModelInfo
from server.http.running import Call

HASH_CHARS: Final = 10
SAMPLER: Final = "Euler"


def info_of(request: GenerationRequest, model: ModelInfo, *, prompt: str, batch_size: int) -> dict[str, Any]:
    """Return what made the pictures; `prompt` is that of the client, with the adapters in it."""
    seeds = [image.seed for image in request.images()]
    count = len(seeds)
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": SAMPLER,
        "cfg_scale": 1.0,
        "steps": request.steps,
        "batch_size": batch_size,
        "sd_model_name": model.name,
        "sd_model_hash": model.digest[:HASH_CHARS],
        "index_of_first_image": 0,
        "infotexts": [_infotext(prompt, request, model, seed) for seed in seeds],
        "styles": [],
        "extra_generation_params": {},
    }


def _infotext(prompt: str, request: GenerationRequest, model: ModelInfo, seed: int) -> str:
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return (
        f"{prompt}{negative}\nSteps: {request.steps}, Sampler: {SAMPLER}, CFG scale: 1.0, "
        f"Seed: {seed}, Size: {request.width}x{request.height}, "
        f"Model hash: {model.digest[:HASH_CHARS]}, Model: {model.name}"
    )


def progress_of(engine: Engine, calls: Sequence[Call], *, now: float) -> dict[str, Any]:
    """Return how far all of a caller's calls are; the step shown is that of the oldest."""
    pictures = sum(call.request.num_images for call in calls)
    progresses = [engine.progress(call.request.id) for call in calls]
    finished = pictures - sum(progress.pictures for progress in progresses)
    total = sum(call.request.num_images * call.request.run_steps for call in calls)
    left = sum(progress.steps - progress.steps_done for progress in progresses)
    done = (total - left) / total if total else 0.0
    since_s = now - min((call.began_s for call in calls), default=now)
    first = progresses[0] if progresses else None
    return {
        "progress": done,
        "eta_relative": since_s * (1 - done) / done if done else 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": _job(calls[0]) if calls else "",
            "job_count": pictures,
            "job_timestamp": "0",
            "job_no": finished,
            "sampling_step": -(-first.steps_done // first.pictures) if first and first.pictures else 0,
            "sampling_steps": calls[0].request.run_steps if calls else 0,
        },
        "current_image": None,
        "textinfo": None,
    }


def _job(call: Call) -> str:
    return "txt2img" if call.request.source is None else "img2img"


def options_of(model: ModelInfo) -> dict[str, Any]:
    """Return the settings that interfaces look for."""
    return {
        "sd_model_checkpoint": title_of(model),
        "sd_checkpoint_hash": model.digest,
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
    }


def title_of(model: ModelInfo) -> str:
    """Return how the model is called in lists."""
    return f"{model.name} [{model.digest[:HASH_CHARS]}]"
