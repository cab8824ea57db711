"""A store that forgets: by bytes, the least recently used first."""

from server.lru import ENTRY_BYTES, Lru


def lru(entries: int) -> Lru[str, bytes]:
    """Return a store with room for so many values of 100 bytes."""
    return Lru(entries * (ENTRY_BYTES + 100), size_of=len)


def test_what_was_used_last_leaves_last() -> None:
    store = lru(2)
    store.put("a", bytes(100))
    store.put("b", bytes(100))
    assert store.get("a") == bytes(100)
    store.put("c", bytes(100))
    assert (store.get("a"), store.get("b"), store.get("c")) == (bytes(100), None, bytes(100))


def test_the_bound_is_in_bytes_and_holds_with_every_put() -> None:
    store = lru(10)
    for number in range(1000):
        store.put(str(number), bytes(number % 700))
        assert store.size_bytes <= store.limit_bytes
    sizes = [len(value) for key in map(str, range(1000)) if (value := store.get(key)) is not None]
    assert store.size_bytes == sum(sizes) + len(sizes) * ENTRY_BYTES
    assert len(store) == len(sizes) > 1


def test_a_value_replaces_the_one_before_it() -> None:
    store = lru(2)
    store.put("a", bytes(100))
    store.put("a", b"new")
    assert (store.get("a"), store.size_bytes) == (b"new", ENTRY_BYTES + 3)
    store.put("a", bytes(10_000))
    assert store.get("a") is None, "the old value is not the new one, though that is too large"
    assert store.size_bytes == 0


def test_small_values_are_bounded_too() -> None:
    store = lru(5)
    for number in range(100):
        store.put(str(number), b"")
    assert 0 < len(store) <= 6


def test_a_bound_of_nothing_keeps_nothing() -> None:
    store = lru(0)
    store.put("a", b"")
    assert store.get("a") is None


def test_dropping_what_is_not_there_is_no_fault() -> None:
    store = lru(1)
    store.drop("a")
    assert store.size_bytes == 0
