"""Configurations: every value has a type and a range, and only the architecture is read."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from model import diffusers_config
from model.bundle import read_json
from model.checkpoint import CheckpointError

READERS: dict[str, Callable[[Path], object]] = {
    "transformer": diffusers_config.transformer_config,
    "autoencoder": diffusers_config.autoencoder_config,
    "schedule": diffusers_config.schedule_config,
    "clip": diffusers_config.clip_config,
    "t5": diffusers_config.t5_config,
}
HUGE = 10**30


def write(folder: Path, **content: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("kind", "key", "values"),
    [
        ("transformer", "num_layers", ["2", True, 2.0, None, 0, -1, 10_000_000, HUGE, [1]]),
        ("transformer", "num_single_layers", [0, 10_000_000]),
        ("transformer", "num_attention_heads", [0, HUGE]),
        ("transformer", "attention_head_dim", [0, HUGE]),
        ("transformer", "axes_dims_rope", [None, 3, [16, 56], [16, 55, 57], [0, 64, 64], [16, 56, 58]]),
        ("transformer", "joint_attention_dim", [0, HUGE]),
        ("transformer", "guidance_embeds", [0, "no", None]),
        ("autoencoder", "block_out_channels", ["16", 16, [0], [1.5], [HUGE], [True]]),
        ("autoencoder", "layers_per_block", [0, 10_000_000]),
        ("autoencoder", "norm_num_groups", [0, "32"]),
        ("autoencoder", "scaling_factor", [0, -1, None, math.nan, math.inf, HUGE**20, True]),
        ("autoencoder", "shift_factor", ["0", None, math.nan, -math.inf]),
        ("autoencoder", "sample_size", [0, "1024", [1024, 1024]]),
        ("schedule", "shift", ["big", 0, math.nan]),
        ("schedule", "max_shift", [math.inf]),
        ("schedule", "use_dynamic_shifting", [1, "true"]),
        ("schedule", "base_image_seq_len", [0, 4096, 5000]),
        ("clip", "hidden_size", ["x", None, 0, HUGE]),
        ("clip", "num_hidden_layers", [10_000_000]),
        ("clip", "num_attention_heads", [0, 7]),
        ("clip", "max_position_embeddings", [76]),
        ("clip", "hidden_act", ["nope", 3, ["gelu"]]),
        ("clip", "layer_norm_eps", ["x", 0]),
        ("clip", "eos_token_id", [[2], -1]),
        ("clip", "model_type", ["t5", 1]),
        ("t5", "d_model", ["x", 0, HUGE]),
        ("t5", "num_layers", [10_000_000]),
        ("t5", "relative_attention_num_buckets", [0, 2]),
        ("t5", "relative_attention_max_distance", [8]),
        ("t5", "feed_forward_proj", ["nope", 3]),
        ("t5", "model_type", ["umt5", "clip_text_model"]),
    ],
)
def test_values_out_of_type_or_range_are_named(
    tmp_path: Path, kind: str, key: str, values: list[object]
) -> None:
    for value in values:
        path = write(tmp_path, **{key: value})
        with pytest.raises(CheckpointError, match=key) as caught:
            READERS[kind](path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize("kind", READERS)
def test_the_defaults_are_those_of_the_published_model_or_library(tmp_path: Path, kind: str) -> None:
    READERS[kind](write(tmp_path))


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_keys_beside_the_architecture_are_not_handed_on(tmp_path: Path, kind: str) -> None:
    """transformers would fetch the attention code that a configuration names."""
    hostile = {"attn_implementation": "someone/kernel", "return_dict": False, "auto_map": {"a": "b--c.D"}}
    config = READERS[kind](write(tmp_path, **hostile, _attn_implementation="someone/kernel"))
    assert config._attn_implementation != "someone/kernel"  # type: ignore[attr-defined]
    assert config.return_dict  # type: ignore[attr-defined]
    assert not hasattr(config, "auto_map")


def test_the_text_half_of_a_whole_clip_is_read(tmp_path: Path) -> None:
    text = {"hidden_size": 768, "num_attention_heads": 12, "eos_token_id": 2}
    config = diffusers_config.clip_config(
        write(tmp_path, model_type="clip", text_config=text, projection_dim=1)
    )
    assert (config.hidden_size, config.num_attention_heads, config.eos_token_id) == (768, 12, 2)


def test_the_published_t5_configuration_gives_a_gated_tanh_gelu(tmp_path: Path) -> None:
    published = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "model_type": "t5"}
    config = diffusers_config.t5_config(write(tmp_path, **published))
    assert (config.is_gated_act, config.dense_act_fn) == (True, "gelu_new")


@pytest.mark.parametrize(
    ("stated", "side"), [(256, 256), (1024, 1024), (32, 1024), (500, 1024), (4096, 1024)]
)
def test_a_side_that_no_picture_has_is_no_default(tmp_path: Path, stated: int, side: int) -> None:
    assert diffusers_config.autoencoder_config(write(tmp_path, sample_size=stated)).sample_size == side


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a":' * 100_000, "not JSON"),
        (b" " * (33 << 20), "more than"),
    ],
    ids=["empty", "cut", "not UTF-8", "a list", "deep", "33 MB"],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_json(path)
