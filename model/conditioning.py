"""The prompts already encoded: a cache of conditionings, least recently used out first, bounded in bytes."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from model.lora import Scaled


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is encoded. The length is part of the result: T5's padding takes part in attention.

    `adapters` are those of its picture; they count where they change the text projection.
    """

    text: str
    max_sequence_length: int
    adapters: tuple[Scaled, ...] = ()


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the transformer sees of a prompt.

    `txt` is [max_sequence_length, width], T5's states after the transformer's text projection; `pooled` is
    [pooled_width], CLIP's state at the end-of-text token. Both are in the transformer's dtype.
    """

    txt: Tensor
    pooled: Tensor

    @property
    def size_bytes(self) -> int:
        return self.txt.nbytes + self.pooled.nbytes


Key = tuple[str, int, tuple[tuple[str, float], ...]]  # text, length, and of each adapter digest and scale


class ConditioningCache:
    """Counts its hits and misses. Not thread-safe: it belongs to the step loop.

    It knows adapters by their digests, so that none stays on the device for what was made with it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[Key, Conditioning] = OrderedDict()

    def clear(self) -> None:
        """Forget everything, the counts too."""
        self.free()
        self.hits = self.misses = 0

    def free(self) -> None:
        """Drop what is kept, to have its memory; the counts go on."""
        self._kept.clear()
        self.size_bytes = 0

    def get(self, prompt: Prompt) -> Conditioning | None:
        """Return what was put for `prompt` and make it the last to leave."""
        key = _key(prompt)
        conditioning = self._kept.get(key)
        if conditioning is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return conditioning

    def put(self, prompt: Prompt, conditioning: Conditioning) -> None:
        """Keep `conditioning`, dropping the oldest ones beyond the bound; too large a one is not kept."""
        if conditioning.size_bytes > self.limit_bytes:
            return
        key = _key(prompt)
        replaced = self._kept.pop(key, None)
        self.size_bytes += conditioning.size_bytes - (replaced.size_bytes if replaced else 0)
        self._kept[key] = conditioning
        while self.size_bytes > self.limit_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.size_bytes -= dropped.size_bytes


def _key(prompt: Prompt) -> Key:
    return (
        prompt.text,
        prompt.max_sequence_length,
        tuple((each.adapter.digest, each.scale) for each in prompt.adapters),
    )
