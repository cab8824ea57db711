"""The layouts of recent steps, kept since the steps of a picture mostly follow each other in one company."""

from collections.abc import Sequence
from functools import lru_cache

import torch

from kernels.rows import Owners, spans
from model.layout import Layout, Numerics, Shape
from model.lora import Scaled, adapted, merged
from model.sampling import PIXELS_PER_PATCH, Pass, Sample
from model.transformer import Transformer

KEPT = 64
KEPT_ADAPTED = 4  # these hold adapters, whose memory should be free when they go

Adapters = tuple[tuple[Scaled, ...], ...]


class RecentLayouts:
    """Lays out steps of a transformer."""

    def __init__(self, transformer: Transformer, *, numerics: Numerics, device: torch.device) -> None:
        self._transformer = transformer
        self._numerics = numerics
        self._device = device
        self._plain = lru_cache(maxsize=KEPT)(self._build)
        self._adapted = lru_cache(maxsize=KEPT_ADAPTED)(self._build_adapted)
        self._owners = lru_cache(maxsize=KEPT)(self._build_owners)

    def of(self, passes: Sequence[tuple[Sample, Pass]]) -> Layout:
        """Return the layout of a step of these passes, with what their adapters add to its products."""
        shapes = tuple(
            Shape(len(each.txt), sample.height // PIXELS_PER_PATCH, sample.width // PIXELS_PER_PATCH)
            for sample, each in passes
        )
        adapters = tuple(sample.adapters for sample, _ in passes)
        return self._adapted(shapes, adapters) if any(adapters) else self._plain(shapes)

    def owners(self, samples: Sequence[Sample]) -> Owners:
        """Return whose the rows of all latents are."""
        return self._owners(tuple(len(sample.latents) for sample in samples))

    def clear(self) -> None:
        """Forget all of them."""
        self._plain.cache_clear()
        self._adapted.cache_clear()
        self._owners.cache_clear()

    def _build(self, shapes: tuple[Shape, ...]) -> Layout:
        return Layout.build(
            shapes, config=self._transformer.config, numerics=self._numerics, device=self._device
        )

    def _build_adapted(self, shapes: tuple[Shape, ...], adapters: Adapters) -> Layout:
        return adapted(self._plain(shapes), self._transformer, [merged(each) for each in adapters])

    def _build_owners(self, lengths: tuple[int, ...]) -> Owners:
        return Owners.build(spans(lengths), self._device)
