"""Adapters: in float32 they are those of diffusers and PEFT, in every key style, alone and in company."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from kernels.ops import reference_ops, triton_ops
from model.conditioning import Prompt
from model.config import TransformerConfig
from model.layout import Layout, Numerics, Shape
from model.lora import Adapter, Scaled, adapted, load_adapter, merged
from model.pipeline import Pipeline
from model.sampling import Sample
from model.transformer import Transformer
from tests.model import adapter_files as files
from tests.model.adapter_files import Matrices
from tests.model.conftest import Oracle
from tests.model.parity import LATENTS, distance, load

CPU = torch.device("cpu")
SIZE = 256
PLENTY = 1 << 30
SMALL = TransformerConfig(
    hidden_size=64,
    num_heads=2,
    mlp_size=128,
    depth_double=1,
    depth_single=1,
    text_width=32,
    pooled_width=24,
    rope_axes=(4, 14, 14),
)


def begin(
    pipeline: Pipeline,
    adapters: Sequence[Scaled] = (),
    *,
    seed: int = 0,
    text: str = "a cat",
    guidance: float = 0.0,
) -> Sample:
    prompt, negative = Prompt(text, 64, tuple(adapters)), Prompt("a dog", 64, tuple(adapters))
    uses_negative = pipeline.uses_negative(guidance)
    conditioning, *others = pipeline.encode([prompt, negative] if uses_negative else [prompt])
    return pipeline.start(
        conditioning=conditioning,
        negative=others[0] if others else None,
        width=SIZE,
        height=SIZE,
        steps=2,
        seed=seed,
        guidance_scale=guidance,
        adapters=adapters,
    )


def finish(pipeline: Pipeline, samples: list[Sample]) -> list[Tensor]:
    while not samples[0].finished:
        pipeline.denoise_step(samples)
    return [sample.latents for sample in samples]


def ours(pipeline: Pipeline, adapters: Sequence[Scaled] = (), **options: object) -> Tensor:
    return finish(pipeline, [begin(pipeline, adapters, **options)])[0]


def read(path: Path, pipeline: Pipeline) -> Adapter:
    return load_adapter(path, pipeline.transformer, limit_bytes=PLENTY)


def theirs(
    oracle: FluxPipeline, adapters: Sequence[tuple[Matrices, float]], *, guidance: float = 0.0
) -> Tensor:
    """Diffusers' latents with adapters that PEFT applies."""
    names = [f"adapter{number}" for number in range(len(adapters))]
    try:
        for name, (changes, _) in zip(names, adapters, strict=True):
            oracle.load_lora_weights(files.peft(changes), adapter_name=name)
        oracle.set_adapters(names, [scale for _, scale in adapters])
        return their_latents(oracle, guidance)
    finally:
        oracle.unload_lora_weights()


def their_latents_of_file(oracle: FluxPipeline, path: Path) -> Tensor:
    """Diffusers' latents with an adapter that it reads itself."""
    try:
        oracle.load_lora_weights(path.parent, weight_name=path.name)
        return their_latents(oracle, 0.0)
    finally:
        oracle.unload_lora_weights()


@torch.inference_mode()
def their_latents(oracle: FluxPipeline, guidance: float) -> Tensor:
    dev = oracle.transformer.config.guidance_embeds
    extra = {"negative_prompt": "a dog", "true_cfg_scale": guidance} if guidance and not dev else {}
    latents = oracle(
        prompt="a cat",
        width=SIZE,
        height=SIZE,
        num_inference_steps=2,
        max_sequence_length=64,
        guidance_scale=guidance if dev else 3.5,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **extra,
    ).images
    return latents[0]


@pytest.fixture(scope="module")
def pipeline(oracle: Oracle) -> Pipeline:
    return load(oracle()[1])


STYLES: dict[str, files.Style] = {
    name: getattr(files, name)
    for name in (
        "peft",
        "peft_export",
        "oldest_diffusers",
        "onetrainer",
        "kohya",
        "comfyui",
        "comfyui_down_up",
    )
}
DIFFUSERS_NAMES = ("peft", "peft_export", "oldest_diffusers", "onetrainer")


@pytest.fixture(scope="module")
def split_latents(oracle: Oracle, pipeline: Pipeline) -> tuple[Matrices, Tensor]:
    """An adapter by diffusers' names, and diffusers' latents with it."""
    changes = files.split(pipeline.transformer)
    return changes, theirs(oracle()[0], [(changes, 0.8)])


@pytest.fixture(scope="module")
def fused_latents(oracle: Oracle, pipeline: Pipeline) -> tuple[Matrices, Tensor]:
    """An adapter by the original names, and diffusers' latents with it."""
    changes = files.fused(pipeline.transformer)
    return changes, theirs(oracle()[0], [(files.as_diffusers(changes), 0.8)])


@pytest.mark.parametrize("name", STYLES)
def test_every_key_style_agrees_with_diffusers(
    pipeline: Pipeline,
    split_latents: tuple[Matrices, Tensor],
    fused_latents: tuple[Matrices, Tensor],
    tmp_path: Path,
    name: str,
) -> None:
    changes, expected = split_latents if name in DIFFUSERS_NAMES else fused_latents
    path = files.write(tmp_path / "style.safetensors", STYLES[name](changes))
    assert distance(ours(pipeline, [Scaled(read(path, pipeline), 0.8)]), expected) <= LATENTS
    assert distance(ours(pipeline), expected) > 1e-2, "an adapter that changes nothing would agree too"


def test_xlabs_processors_agree_with_diffusers_reading_of_them(
    oracle: Oracle, pipeline: Pipeline, tmp_path: Path
) -> None:
    path = files.write(tmp_path / "x.safetensors", files.xlabs(files.fused(pipeline.transformer)))
    expected = their_latents_of_file(oracle()[0], path)
    assert distance(ours(pipeline, [Scaled(read(path, pipeline), 1.0)]), expected) <= LATENTS


@pytest.mark.parametrize(
    "metadata",
    [
        {"transformer.r": 3, "transformer.lora_alpha": 6},
        {
            "transformer.r": 3,
            "transformer.lora_alpha": 1.5,
            "transformer.alpha_pattern": {"transformer_blocks.1.attn.to_q": 12, "proj_out": 6},
            "transformer.use_rslora": True,
        },
    ],
    ids=["alpha", "pattern"],
)
def test_what_peft_says_in_the_header_holds(
    oracle: Oracle, pipeline: Pipeline, tmp_path: Path, metadata: dict[str, object]
) -> None:
    changes = files.as_diffusers(files.fused(pipeline.transformer))
    targets = {"transformer.target_modules": sorted(changes)}
    path = files.write(tmp_path / "peft.safetensors", files.peft(changes), metadata | targets)
    expected = their_latents_of_file(oracle()[0], path)
    assert distance(ours(pipeline, [Scaled(read(path, pipeline), 1.0)]), expected) <= LATENTS


@pytest.mark.parametrize("name", ["peft", "kohya", "onetrainer"])
def test_alpha_over_rank_counts_once(pipeline: Pipeline, tmp_path: Path, name: str) -> None:
    changes = files.fused(pipeline.transformer, rank=4)
    stored = changes if name == "kohya" else files.as_diffusers(changes)
    plain = STYLES[name](files.scaled(stored, 0.5))
    halved = files.alphas(STYLES[name](stored), alpha=2.0)
    expected, actual = (
        ours(pipeline, [Scaled(read(files.write(tmp_path / "file", state), pipeline), 1.0)])
        for state in (plain, halved)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_two_adapters_with_different_scales_agree_with_diffusers(
    oracle: Oracle, pipeline: Pipeline, tmp_path: Path
) -> None:
    """With classifier-free guidance, so that both passes have them."""
    both = [files.split(pipeline.transformer, seed=seed, rank=rank) for seed, rank in ((1, 2), (2, 5))]
    scales = (0.7, -0.4)
    expected = theirs(oracle()[0], list(zip(both, scales, strict=True)), guidance=2.0)
    adapters = [
        Scaled(read(files.write(tmp_path / "file", files.peft(changes)), pipeline), scale)
        for changes, scale in zip(both, scales, strict=True)
    ]
    assert distance(ours(pipeline, adapters, guidance=2.0), expected) <= LATENTS


def test_guidance_distilled_weights_take_adapters(oracle: Oracle, tmp_path: Path) -> None:
    theirs_dev, folder = oracle(dev=True)
    pipeline = load(folder)
    changes = files.split(pipeline.transformer)
    assert "time_text_embed.guidance_embedder.linear_1" in changes
    expected = theirs(theirs_dev, [(changes, 1.0)], guidance=3.5)
    adapter = read(files.write(tmp_path / "file", files.peft(changes)), pipeline)
    assert distance(ours(pipeline, [Scaled(adapter, 1.0)], guidance=3.5), expected) <= LATENTS


def test_a_rank_beyond_the_kernels_is_cut_and_agrees(
    oracle: Oracle, pipeline: Pipeline, tmp_path: Path
) -> None:
    changes = files.as_diffusers(files.fused(pipeline.transformer, rank=200))
    adapter = read(files.write(tmp_path / "file", files.peft(changes)), pipeline)
    ranks = {change.rank for changes in adapter.changes.values() for change in changes}
    assert ranks == {128, 72}
    expected = theirs(oracle()[0], [(changes, 1.0)])
    assert distance(ours(pipeline, [Scaled(adapter, 1.0)]), expected) <= LATENTS


@pytest.mark.parametrize(
    "options",
    [
        {"kernels": "auto"},
        {"kernels": "reference"},
        {"quantize": "fp8"},
        {"numerics": Numerics.FAST},
        {"dtype": torch.bfloat16},
        pytest.param({"device": torch.device("cuda")}, marks=pytest.mark.gpu),
        pytest.param({"device": torch.device("cuda"), "dtype": torch.bfloat16}, marks=pytest.mark.gpu),
    ],
    ids=["auto", "reference", "fp8", "fast", "bfloat16", "cuda", "cuda-bfloat16"],
)
def test_rows_with_different_adapters_share_a_step_and_stay_themselves(
    oracle: Oracle, tmp_path: Path, options: dict[str, object]
) -> None:
    """In exact numerics to the last bit; in fast numerics within rounding."""
    pipeline = load(oracle()[1], **options)
    first, second = (
        read(files.write(tmp_path / "file", files.peft(changes)), pipeline)
        for changes in (
            files.split(pipeline.transformer, rank=3, seed=1),
            dict(list(files.split(pipeline.transformer, rank=20, seed=2).items())[::3]),
        )
    )
    company: list[list[Scaled]] = [
        [Scaled(first, 1.0)],
        [],
        [Scaled(second, 0.5)],
        [Scaled(second, 0.5), Scaled(first, -1.0)],
    ]
    alone = [ours(pipeline, adapters, seed=7) for adapters in company]
    together = finish(pipeline, [begin(pipeline, adapters, seed=7) for adapters in company])
    for one, other in zip(alone, together, strict=True):
        if pipeline.numerics is Numerics.EXACT:
            assert torch.equal(one, other)
        else:
            assert distance(one, other) <= LATENTS
    for index, one in enumerate(alone):
        assert all(distance(one, other) > 1e-2 for other in alone[:index])


def test_eight_bits_keep_what_an_adapter_changes(oracle: Oracle, pipeline: Pipeline, tmp_path: Path) -> None:
    plain, quantised = pipeline, load(oracle()[1], quantize="fp8")
    path = files.write(tmp_path / "file", files.peft(files.split(plain.transformer)))
    with_adapter = [ours(each, [Scaled(read(path, each), 1.0)]) for each in (plain, quantised)]
    assert distance(with_adapter[1], with_adapter[0]) < 0.1 < distance(ours(plain), with_adapter[0])


@torch.inference_mode()
def test_the_kernels_agree_with_the_reference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, fused = Transformer(SMALL, reference_ops()), Transformer(SMALL, triton_ops())
    fused.load_state_dict(plain.state_dict())
    shapes = [Shape(5, 3, 5), Shape(9, 3, 4), Shape(1, 2, 2)]
    layout = Layout.build(shapes, config=SMALL, numerics=Numerics.EXACT, device=CPU)
    paths = [files.write(tmp_path / str(rank), files.peft(files.split(plain, rank=rank))) for rank in (3, 20)]
    img, txt = (torch.randn(sum(rows), 64) for rows in ((15, 12, 4), (5, 9, 1)))
    velocities = []
    for transformer in (plain, fused):
        first, second = (load_adapter(path, transformer, limit_bytes=PLENTY) for path in paths)
        changes = [
            merged([Scaled(first, 1.0), Scaled(second, 0.5)]),
            merged([]),
            merged([Scaled(second, 1.0)]),
        ]
        modulation = torch.cat(
            [transformer.modulate(torch.ones(1), torch.linspace(-1, 1, 24), None, own) for own in changes]
        )
        velocities.append(transformer(img, txt, modulation, adapted(layout, transformer, changes)))
    assert distance(velocities[1], velocities[0]) < 1e-5


def test_an_adapter_of_the_text_projection_does_not_change_what_others_are_told(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    changes = files.split(pipeline.transformer)
    projecting, other = (
        read(files.write(tmp_path / "file", files.peft(each)), pipeline)
        for each in (changes, {"x_embedder": changes["x_embedder"]})
    )
    plain, changed, halved, again, same = (
        pipeline.encode([Prompt("a cat", 64, adapters)])[0]
        for adapters in (
            (),
            (Scaled(projecting, 1.0),),
            (Scaled(projecting, 0.5),),
            (Scaled(projecting, 1.0), Scaled(other, 1.0)),
            (Scaled(other, 1.0),),
        )
    )
    assert again is changed
    assert same is plain
    assert distance(changed.txt, plain.txt) > 1e-2 < distance(halved.txt, changed.txt)


def test_what_is_kept_of_a_prompt_does_not_keep_its_adapter(pipeline: Pipeline, tmp_path: Path) -> None:
    path = files.write(tmp_path / "file", files.peft(files.split(pipeline.transformer)))
    adapter = read(path, pipeline)
    gone = weakref.ref(adapter)
    (first,) = pipeline.encode([Prompt("a cat", 64, (Scaled(adapter, 1.0),))])
    ours(pipeline, [Scaled(adapter, 1.0)])
    del adapter
    assert gone() is None
    (second,) = pipeline.encode([Prompt("a cat", 64, (Scaled(read(path, pipeline), 1.0),))])
    assert second is first, "the same file is the same adapter"


def test_only_steps_without_adapters_are_recorded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded, step = [], pipeline._step

    def noted(img: Tensor, txt: Tensor, modulation: Tensor, layout: Layout) -> Tensor:
        recorded.append(layout)
        return step(img, txt, modulation, layout)

    monkeypatch.setattr(pipeline, "_step", noted)
    adapter = read(files.write(tmp_path / "file", files.peft(files.split(pipeline.transformer))), pipeline)
    ours(pipeline, [Scaled(adapter, 1.0)])
    assert recorded == []
    ours(pipeline)
    assert len(recorded) == 2
