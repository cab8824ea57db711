"""A checkpoint on disk, in any published layout: opened (headers and sizes) and then loaded into modules.

`open_checkpoint` reads no tensor data; `load_into` fills one module at a time, straight into its target
device and dtype through small buffers, checking every value and hashing every byte on the way.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import CLIPTextConfig, T5Config

from model import diffusers_config, recognition
from model.bundle import open_bundle, open_bundles, read_json
from model.config import AutoencoderConfig, ScheduleConfig, TransformerConfig
from model.diffusers_config import ConfigFile, is_config_of
from model.loading import Component, load_into
from model.recognition import Found, Part, find_parts
from model.safetensors_file import CheckpointError
from model.sampling import LATENT_CHANNELS
from model.sizes import Sizes

__all__ = ["Checkpoint", "CheckpointError", "combined_digest", "load_into", "open_checkpoint"]

PATCH_CHANNELS = 4  # 2x2 latents per token
LEVELS = 4  # of the autoencoder: 8 pixels per latent
INDEX_ENDING = re.compile(r"\.index(\.\w+)?\.json$")
DEV_SCHEDULE = ScheduleConfig(use_dynamic_shifting=True, shift=3.0)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds and how it is configured; no tensor data has been read."""

    name: str
    transformer: Component
    autoencoder: Component
    clip: Component
    t5: Component
    transformer_config: TransformerConfig
    autoencoder_config: AutoencoderConfig
    clip_config: CLIPTextConfig
    t5_config: T5Config
    schedule: ScheduleConfig
    clip_tokenizer: Path
    t5_tokenizer: Path

    @property
    def size_bytes(self) -> int:
        """Stored bytes of all components."""
        components = (self.transformer, self.autoencoder, self.clip, self.t5)
        return sum(component.size_bytes for component in components)

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.transformer_config, self.autoencoder_config, self.clip_config, self.t5_config)


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Recognise a checkpoint by its content and check every header that is used.

    `path` is a folder in the diffusers layout, a folder in the original layout, or one file, whose folder
    then supplies what it lacks. Raises `CheckpointError`.
    """
    try:
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such file or folder")
        if (path / "model_index.json").is_file():
            checkpoint = _open_diffusers(path, allow_pickle=allow_pickle)
        else:
            checkpoint = _open_original(path, allow_pickle=allow_pickle)
    except OSError as error:  # a folder that may not be listed, a name too long for the file system
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    _refuse_other_models(path, checkpoint)
    _refuse_other_encoders(path, checkpoint)
    return checkpoint


def combined_digest(digests: Iterable[str]) -> str:
    """Return one digest for the digests of all components, in their order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _open_diffusers(folder: Path, *, allow_pickle: bool) -> Checkpoint:
    found = {
        part: _component_in(folder / name, part, allow_pickle=allow_pickle)
        for part, name in (
            (Part.TRANSFORMER, "transformer"),
            (Part.AUTOENCODER, "vae"),
            (Part.CLIP, "text_encoder"),
            (Part.T5, "text_encoder_2"),
        )
    }
    return Checkpoint(
        name=folder.absolute().name,
        **_components(found),
        transformer_config=diffusers_config.transformer_config(folder / "transformer" / "config.json"),
        autoencoder_config=diffusers_config.autoencoder_config(folder / "vae" / "config.json"),
        clip_config=diffusers_config.clip_config(folder / "text_encoder" / "config.json"),
        t5_config=diffusers_config.t5_config(folder / "text_encoder_2" / "config.json"),
        schedule=diffusers_config.schedule_config(folder / "scheduler" / "scheduler_config.json"),
        clip_tokenizer=_tokenizer(folder / "tokenizer", is_clip_tokenizer),
        t5_tokenizer=_tokenizer(folder / "tokenizer_2", is_t5_tokenizer),
    )


def _component_in(folder: Path, part: Part, *, allow_pickle: bool) -> Found:
    """Find a component in its folder; of several variants the plainest name is taken."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: the folder of the {part} is missing")
    ConfigFile.open(folder / "config.json")  # before the tensors: it tells of a quantised component
    candidates = [
        found
        for bundle in open_bundles(folder, allow_pickle=allow_pickle)
        for found in find_parts(bundle)
        if found.part is part
    ]
    if not candidates:
        raise CheckpointError(f"{folder}: no file in it holds the tensors of a FLUX.1 {part}")
    return min(candidates, key=lambda found: INDEX_ENDING.sub(r"\1", found.bundle.path.name).count("."))


def _open_original(path: Path, *, allow_pickle: bool) -> Checkpoint:
    folder = path if path.is_dir() else path.parent
    found = _find_all(path, allow_pickle=allow_pickle)
    if missing := [part for part in Part if part not in found]:
        raise CheckpointError(
            f"{path}: no tensors of the {', the '.join(missing)}; a FLUX.1 model needs its transformer, "
            "autoencoder (ae.safetensors), CLIP and T5 text encoders in one folder or file"
        )
    transformer_config = recognition.transformer_config(found[Part.TRANSFORMER])
    return Checkpoint(
        name=path.stem if path.is_file() else path.absolute().name,  # a link's target may be a bare hash
        **_components(found),
        transformer_config=transformer_config,
        autoencoder_config=recognition.autoencoder_config(found[Part.AUTOENCODER]),
        clip_config=_clip_config(found[Part.CLIP]),
        t5_config=_t5_config(found[Part.T5]),
        schedule=_schedule(folder, transformer_config),
        clip_tokenizer=_find_tokenizer(folder, is_clip_tokenizer, "CLIP (vocab.json and merges.txt)"),
        t5_tokenizer=_find_tokenizer(folder, is_t5_tokenizer, "T5 (spiece.model or tokenizer.json)"),
    )


def _find_all(path: Path, *, allow_pickle: bool) -> dict[Part, Found]:
    """Find each component: in the named file first, then in its folder, then in the folders below."""
    chosen: dict[Part, Found] = {}
    if path.is_file() or not path.is_dir():
        chosen = {found.part: found for found in find_parts(open_bundle(path, allow_pickle=allow_pickle))}
    named = frozenset(chosen)
    folder = path if path.is_dir() else path.parent
    for place in (folder, *_folders_in(folder)):
        if len(chosen) == len(Part):
            break
        for bundle in open_bundles(place, allow_pickle=allow_pickle):
            for found in find_parts(bundle, besides=named):
                known = chosen.setdefault(found.part, found)
                if known.bundle.path != bundle.path and known.bundle.path.parent == place:
                    raise CheckpointError(
                        f"{place}: both {known.bundle.path.name} and {bundle.path.name} hold a {found.part}; "
                        "name the file to serve, or keep only one"
                    )
    return chosen


def _clip_config(found: Found) -> CLIPTextConfig:
    path = found.bundle.path.parent / "config.json"
    beside = is_config_of(CLIPTextConfig, path)
    return diffusers_config.clip_config(path) if beside else recognition.clip_config(found)


def _t5_config(found: Found) -> T5Config:
    path = found.bundle.path.parent / "config.json"
    beside = is_config_of(T5Config, path)
    return diffusers_config.t5_config(path) if beside else recognition.t5_config(found)


def _schedule(folder: Path, transformer: TransformerConfig) -> ScheduleConfig:
    """Return the schedule that lies beside the files, or else the one that such weights were made for."""
    path = folder / "scheduler" / "scheduler_config.json"
    if path.is_file():
        return diffusers_config.schedule_config(path)
    return DEV_SCHEDULE if transformer.guidance_embed else ScheduleConfig()


def _components(found: dict[Part, Found]) -> dict[str, Component]:
    fields = {
        "transformer": Part.TRANSFORMER,
        "autoencoder": Part.AUTOENCODER,
        "clip": Part.CLIP,
        "t5": Part.T5,
    }
    return {
        field: Component(
            label=part.value,
            path=found[part].bundle.path,
            tensors=found[part].tensors,
            naming=recognition.naming(found[part]),
        )
        for field, part in fields.items()
    }


def _refuse_other_models(path: Path, checkpoint: Checkpoint) -> None:
    """FLUX.1 Fill and Control take more input channels than a text-to-image model has."""
    expected = LATENT_CHANNELS * PATCH_CHANNELS
    if (found := checkpoint.transformer_config.in_channels) != expected:
        raise CheckpointError(
            f"{path}: the transformer takes {found} channels where a text-to-image model takes {expected}; "
            "FLUX.1 Fill, Depth, Canny and other control models are not supported"
        )
    autoencoder = checkpoint.autoencoder_config
    if len(autoencoder.channels) != LEVELS or autoencoder.latent_channels != LATENT_CHANNELS:
        raise CheckpointError(
            f"{path}: an autoencoder of {len(autoencoder.channels)} levels and {autoencoder.latent_channels} "
            f"latent channels is none of FLUX.1, which has {LEVELS} and {LATENT_CHANNELS}"
        )
    if any(width % autoencoder.norm_groups for width in autoencoder.channels):
        raise CheckpointError(
            f"{path}: autoencoder channels {list(autoencoder.channels)} cannot be split into "
            f"{autoencoder.norm_groups} norm groups"
        )


def _refuse_other_encoders(path: Path, checkpoint: Checkpoint) -> None:
    """The text encoders must be those, or as wide as those, that the transformer was trained with."""
    transformer, clip, t5 = checkpoint.transformer_config, checkpoint.clip_config, checkpoint.t5_config
    for what, given, taken in (
        (Part.CLIP, clip.hidden_size, transformer.pooled_width),
        (Part.T5, t5.d_model, transformer.text_width),
    ):
        if given != taken:
            raise CheckpointError(
                f"{path}: the {what} gives {given} features where the transformer takes {taken}; it belongs "
                "to another model"
            )


def is_clip_tokenizer(folder: Path) -> bool:
    """CLIP's is a byte-pair encoding: a vocabulary and its merges, or both in one file."""
    whole = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return whole or _tokenizer_type(folder) == "BPE"


def is_t5_tokenizer(folder: Path) -> bool:
    """T5's is a unigram model, from SentencePiece or converted."""
    return (folder / "spiece.model").is_file() or _tokenizer_type(folder) == "Unigram"


def _tokenizer_type(folder: Path) -> object:
    path = folder / "tokenizer.json"
    model = read_json(path).get("model") if path.is_file() else None
    return model.get("type") if isinstance(model, dict) else None


def _tokenizer(folder: Path, recognised: Callable[[Path], bool]) -> Path:
    if not recognised(folder):
        raise CheckpointError(f"{folder}: the tokenizer files are missing")
    return folder


def _find_tokenizer(folder: Path, recognised: Callable[[Path], bool], what: str) -> Path:
    for place in (folder, *_folders_in(folder)):
        if recognised(place):
            return place
    raise CheckpointError(f"{folder}: no folder in it holds the tokenizer of {what}")


def _folders_in(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir())
