"""The layouts of recent steps, kept since the steps of a picture mostly follow each other in one company."""

from collections.abc import Sequence
from functools import lru_cache
from weakref import WeakValueDictionary

import torch

from kernels.rows import Owners, spans
from model.layout import Layout, Numerics, Shape
from model.lora import Scaled, adapted, merged
from model.sampling import PIXELS_PER_PATCH, Pass, Sample
from model.transformer import Transformer

KEPT = 64

Adapters = tuple[tuple[Scaled, ...], ...]


class RecentLayouts:
    """Lays out steps of a transformer. Those with adapters live as long as the samples of their last step."""

    def __init__(self, transformer: Transformer, *, numerics: Numerics, device: torch.device) -> None:
        self._transformer = transformer
        self._numerics = numerics
        self._device = device
        self._plain = lru_cache(maxsize=KEPT)(self._build)
        self._owners = lru_cache(maxsize=KEPT)(self._build_owners)
        self._adapted: WeakValueDictionary[tuple[tuple[Shape, ...], Adapters], Layout] = WeakValueDictionary()

    def of(self, passes: Sequence[tuple[Sample, Pass]]) -> Layout:
        """Return the layout of a step of these passes, with what their adapters add to its products."""
        shapes = tuple(
            Shape(len(each.txt), sample.height // PIXELS_PER_PATCH, sample.width // PIXELS_PER_PATCH)
            for sample, each in passes
        )
        adapters = tuple(sample.adapters for sample, _ in passes)
        if not any(adapters):
            return self._plain(shapes)
        if (layout := self._adapted.get((shapes, adapters))) is None:
            layout = self._adapted[shapes, adapters] = self._build_adapted(shapes, adapters)
        for sample, _ in passes:
            sample.layout = layout
        return layout

    def owners(self, samples: Sequence[Sample]) -> Owners:
        """Return whose the rows of all latents are."""
        return self._owners(tuple(len(sample.latents) for sample in samples))

    def clear(self) -> None:
        """Forget all of them."""
        self._plain.cache_clear()
        self._adapted.clear()
        self._owners.cache_clear()

    def _build(self, shapes: tuple[Shape, ...]) -> Layout:
        return Layout.build(
            shapes, config=self._transformer.config, numerics=self._numerics, device=self._device
        )

    def _build_adapted(self, shapes: tuple[Shape, ...], adapters: Adapters) -> Layout:
        return adapted(self._plain(shapes), self._transformer, [merged(each) for each in adapters])

    def _build_owners(self, lengths: tuple[int, ...]) -> Owners:
        return Owners.build(spans(lengths), self._device)
