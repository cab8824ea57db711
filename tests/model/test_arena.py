"""Host memory in blocks: tensors lie apart, and little is left over."""

import torch

from model.arena import ALIGNMENT, BLOCK_BYTES, Arena

MIB = 1 << 20


def test_tensors_of_one_block_do_not_touch_each_other() -> None:
    arena = Arena(pinned=False)
    shapes = [torch.Size(shape) for shape in ((3,), (5, 7), (), (2, 0), (11,))]
    tensors = [arena.empty(shape, torch.float32).fill_(number) for number, shape in enumerate(shapes)]
    for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape
        assert (tensor == number).all()
        assert tensor.data_ptr() % ALIGNMENT == 0 or not tensor.numel()
    assert arena.size_bytes == BLOCK_BYTES


def test_what_does_not_fit_begins_a_block_and_small_ones_fill_the_gaps() -> None:
    with torch.device("meta"):
        arena = Arena(pinned=False)
        first, second, third = (arena.empty(torch.Size([size * MIB]), torch.uint8) for size in (160, 100, 90))
    assert first.untyped_storage()._cdata == third.untyped_storage()._cdata
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    assert arena.size_bytes == 2 * BLOCK_BYTES


def test_a_tensor_larger_than_a_block_has_the_next_power_of_two() -> None:
    """As torch would round it anyway when it is page-locked."""
    with torch.device("meta"):
        arena = Arena(pinned=False)
        arena.empty(torch.Size([300 * MIB]), torch.uint8)
    assert arena.size_bytes == 512 * MIB


def test_the_published_encoders_waste_little() -> None:
    """A layer of T5 XXL in bfloat16 has four tensors of 32 MiB and three of 80: 368 MiB, 24 times."""
    with torch.device("meta"):
        arena = Arena(pinned=False)
        for _ in range(24):
            for mib in (32, 32, 32, 32, 80, 80, 80):
                arena.empty(torch.Size([mib * MIB]), torch.uint8)
    assert arena.size_bytes < 1.05 * 24 * 368 * MIB
