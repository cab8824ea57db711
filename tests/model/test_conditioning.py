"""The conditioning cache: bounded in bytes, oldest out first, counted."""

import torch

from model.conditioning import Conditioning, ConditioningCache, Prompt


def conditioning(rows: int) -> Conditioning:
    """`rows` rows of 4 float32 beside a pooled vector of 4: 16 * (rows + 1) bytes."""
    return Conditioning(txt=torch.zeros(rows, 4), pooled=torch.zeros(4))


def test_a_prompt_is_found_again_by_text_and_length() -> None:
    cache = ConditioningCache(1000)
    kept = conditioning(3)
    cache.put(Prompt("a cat", 64), kept)
    assert cache.get(Prompt("a cat", 64)) is kept
    assert cache.get(Prompt("a cat", 128)) is None
    assert (cache.hits, cache.misses, cache.size_bytes) == (1, 1, 64)


def test_the_least_recently_used_leaves_first() -> None:
    cache = ConditioningCache(128)
    for text in ("one", "two"):
        cache.put(Prompt(text, 64), conditioning(3))
    cache.get(Prompt("one", 64))
    cache.put(Prompt("three", 64), conditioning(3))
    assert cache.get(Prompt("two", 64)) is None
    assert cache.get(Prompt("one", 64)) is not None
    assert cache.size_bytes == 128


def test_clearing_forgets_everything() -> None:
    cache = ConditioningCache(1000)
    cache.put(Prompt("a cat", 64), conditioning(3))
    cache.get(Prompt("a cat", 64))
    cache.clear()
    assert (cache.size_bytes, cache.hits, cache.misses) == (0, 0, 0)
    assert cache.get(Prompt("a cat", 64)) is None


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    cache = ConditioningCache(0)
    cache.put(Prompt("a cat", 64), conditioning(3))
    assert cache.get(Prompt("a cat", 64)) is None
    assert cache.size_bytes == 0


def test_putting_a_prompt_again_counts_its_bytes_once() -> None:
    cache = ConditioningCache(1000)
    cache.put(Prompt("a cat", 64), conditioning(3))
    cache.put(Prompt("a cat", 64), conditioning(7))
    assert cache.size_bytes == 128


def test_freed_memory_is_forgotten_and_the_counts_go_on() -> None:
    cache = ConditioningCache(10_000)
    cache.put(Prompt("a", 16), conditioning(100))
    cache.get(Prompt("a", 16))
    cache.free()
    assert cache.size_bytes == 0
    assert cache.get(Prompt("a", 16)) is None
    assert (cache.hits, cache.misses) == (1, 1)
