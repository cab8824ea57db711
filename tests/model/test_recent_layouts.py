"""Layouts are made once for a company, and again with other adapters or when they were forgotten."""

import weakref
from pathlib import Path

import torch

from model.layout import Numerics
from model.lora import Scaled, load_adapter
from model.recent_layouts import RecentLayouts
from model.sampling import Pass, Sample
from model.transformer import Transformer
from tests.model import adapter_files as files
from tests.model.test_lora import SMALL

PASS = Pass(txt=torch.zeros(5, 64), modulation=torch.zeros(1))


def sample(*adapters: Scaled, width: int = 32) -> tuple[Sample, Pass]:
    latents = torch.zeros(2 * width // 16, 64)
    return Sample(width, 32, (1.0, 0.0), 0.0, (PASS,), latents, adapters=adapters), PASS


def test_a_layout_is_kept_by_shapes_and_adapters(tmp_path: Path) -> None:
    transformer = Transformer(SMALL)
    layouts = RecentLayouts(transformer, numerics=Numerics.EXACT, device=torch.device("cpu"))
    path = files.write(tmp_path / "file", files.peft(files.split(transformer)))
    adapter = load_adapter(path, transformer, limit_bytes=1 << 30)
    first = sample(Scaled(adapter, 1.0))
    plain, whole = layouts.of([sample(), sample()]), layouts.of([first, sample()])
    assert layouts.of([sample(), sample()]) is plain
    assert first[0].layout is whole
    assert layouts.of([sample(Scaled(adapter, 1.0)), sample()]) is whole
    others = [
        layouts.of([sample(), sample(Scaled(adapter, 1.0))]),
        layouts.of([sample(Scaled(adapter, 0.5)), sample()]),
        layouts.of([sample(Scaled(adapter, 1.0)), sample(width=48)]),
    ]
    assert all(other is not whole for other in others)
    assert (plain.is_adapted, whole.is_adapted) == (False, True)
    assert whole.joint.cos is plain.joint.cos, "the adapters come on top of what is there"
    layouts.clear()
    assert layouts.of([sample(), sample()]) is not plain


def test_owners_follow_the_latents() -> None:
    layouts = RecentLayouts(Transformer(SMALL), numerics=Numerics.FAST, device=torch.device("cpu"))
    samples = [sample(width=width)[0] for width in (32, 48)]
    assert layouts.owners(samples).by_row.tolist() == [0] * 4 + [1] * 6


def test_a_layout_with_adapters_lives_as_long_as_the_samples_of_its_step(tmp_path: Path) -> None:
    transformer = Transformer(SMALL)
    layouts = RecentLayouts(transformer, numerics=Numerics.EXACT, device=torch.device("cpu"))
    path = files.write(tmp_path / "file", files.peft(files.split(transformer)))
    adapter = load_adapter(path, transformer, limit_bytes=1 << 30)
    first, second = sample(Scaled(adapter, 1.0)), sample()
    layout = weakref.ref(layouts.of([first, second]))
    assert layouts.of([first, second]) is layout()
    layouts.of([first])
    assert layout() is not None, "the second one may step with another like the first"
    del second
    assert layout() is None
